"""Measures of a decomposed language model: curves over the number of active components, contexts.

Letters: N contexts, T positions, R = N·T rows, C components, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.decomposition.result import Decomposition
from apd_jax.evaluation import ranking, ranks, without
from apd_jax.evaluation.evidence import distance, equal_rank, rows
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.labels import NEXT_TOKENS
from apd_jax.objective.objective import Objective
from apd_jax.report.contexts import Context, Described
from apd_jax.studies.language_model.network import LanguageModel
from apd_jax.studies.language_model.text import decode

LEVELS = (2, 4, 8, 16, 32, 64)  # active components per position, in the curves
DRAWN = 20  # components that are drawn at random to be shown
MOST_KL, LEAST_RECOVERED = 0.45, 0.9  # a decomposition beyond these does not explain the network
_CURVE_CONTEXTS = 32
_SHOWN, _BEFORE, _AFTER = 8, 24, 8  # contexts of a component, and bytes of each


class LevelCurve(NamedTuple):
    """Points of a curve, one for each level.

    Attributes:
      l0: active components (or bundles, or terms) per position.
      active_rank: their rank.
      kl: KL divergence from the target's output in nats.
      recovered: share of the cross entropy that is recovered, of what the components explain.
    """

    l0: list[float]
    active_rank: list[float]
    kl: list[float]
    recovered: list[float]


class LanguageArrays(NamedTuple):
    """What the figures and the report show.

    Attributes:
      curves: `{series: LevelCurve}`, of the components and the baselines that are not too large.
      k: active components per position of the decomposition.
      components: the components that are ever active, most active first.
      drawn: those drawn at random, by their numbers.
    """

    curves: dict[str, LevelCurve]
    k: float
    components: list[Described]
    drawn: list[int]


@jax.default_matmul_precision("highest")
def evaluate_language_model(
    task: LanguageModel, decomposition: Decomposition, *, key: jax.Array, samples: int
) -> tuple[dict[str, float | int | bool], LanguageArrays]:
    """Measure a decomposition of a language model on held-out text.

    Args:
      task: the network and its text.
      decomposition: the decomposition of one seed.
      key: PRNG key for the contexts.
      samples: number of contexts; the curves take the first 32.

    Returns:
      (numbers, arrays): numbers for results.json, and `LanguageArrays`. `solved` is true if the
      active components recover at least 90 % of the cross entropy at a KL divergence of at most
      0.45 nats.
    """
    x = np.asarray(task.held_out(key, samples))
    whole, _ = rows.examples(decomposition.target, x, NEXT_TOKENS, None, True)
    whole = whole._replace(outputs=distance.outputs(decomposition.target, whole.x))
    own = _own(decomposition, whole)
    entropies = _reference(decomposition, whole)
    k = decomposition.objective.topk or float(own.scores.shape[-1])
    kl, recovered = _point(decomposition, own.parts, own.mask(k), whole, entropies)
    described, active_share = describe(decomposition, x, own.scores)
    numbers = {
        "kl": kl,
        "recovered": recovered,
        "ce_of_sum_above_target": entropies["sum"] - entropies["target"],
        "solved": kl <= MOST_KL and recovered >= LEAST_RECOVERED,
        "components_ever_active": int(np.sum(active_share > 0)),
    }
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    alive = np.flatnonzero(active_share > 0)
    drawn = np.sort(draw.permutation(alive)[:DRAWN]).tolist()
    curves = make_curves(decomposition, own.first(_CURVE_CONTEXTS))
    return numbers, LanguageArrays(curves, k, described, drawn)


class _Own(NamedTuple):
    """The components' attributions [N, T, C] on contexts, and the rule that selects by them."""

    parts: Parts
    scores: np.ndarray
    objective: Objective
    block: Examples

    def first(self, count: int) -> "_Own":
        """The same for the first contexts."""
        block = jax.tree.map(lambda leaf: leaf[:count], self.block)
        return self._replace(scores=self.scores[:count], block=block)

    def mask(self, k: float) -> np.ndarray:
        """The active components with k of them, [B, T, C] bool."""
        own = k == self.objective.topk  # of learned gates, other k have top-k of their scores
        rule = self.objective if own else self.objective.with_topk(k)
        return rows.select(rule, self.scores, self.block)


def _own(decomposition: Decomposition, block: Examples) -> _Own:
    size = decomposition.settings.batch_size
    places = range(0, len(block.x), size)
    scores = np.concatenate([decomposition.attributions(block.x[i : i + size]) for i in places])
    return _Own(Parts(decomposition.components), scores, decomposition.objective, block)


def _reference(decomposition: Decomposition, block: Examples) -> dict[str, float]:
    """Cross entropies of the network, of the sum of the components, and of no component."""
    target, components = decomposition.target, decomposition.components
    weights = {
        "target": target.weights,
        "sum": {site: factors.sum() for site, factors in components.items()},
        "zero": {site: jnp.zeros_like(weight) for site, weight in target.weights.items()},
    }
    sums = {name: distance.of_weights("kl", target, w, block) for name, w in weights.items()}
    return {name: _ratio(s.cross_entropy, s.labels) for name, s in sums.items()}


def _ratio(values: jax.Array, counts: jax.Array) -> float:
    total, count = (np.asarray(array, np.float64).sum() for array in (values, counts))
    return float(total / count)


def _point(
    decomposition: Decomposition,
    parts: Parts,
    mask: np.ndarray,
    block: Examples,
    entropies: dict[str, float],
) -> tuple[float, float]:
    """KL divergence with a mask, and the share of the cross entropy that is recovered."""
    weights = jnp.asarray(mask, jnp.float32)
    sums = distance.of_mask("kl", decomposition.target, parts, block, weights)
    lost = entropies["zero"] - _ratio(sums.cross_entropy, sums.labels)
    possible = entropies["zero"] - entropies["target"]
    return _ratio(sums.error, sums.unit), lost / (possible or 1e-30)


def make_curves(decomposition: Decomposition, own: _Own) -> dict[str, LevelCurve]:
    """Curves over the number of active components, and of baselines at the same size.

    Singular vectors and neurons have the active rank of the components at each level, bundles of
    singular vectors the same number of bundles: the same bits.
    """
    target, count, block = decomposition.target, own.scores.shape[-1], own.block
    entropies = _reference(decomposition, block)
    values = ranks.singular_values(decomposition.components)
    own_ranks = ranks.ranks(values, ranks.target_singular_values(target))
    levels = [level for level in LEVELS if level <= count]
    curves = {"components": LevelCurve([], [], [], [])}
    for level in levels:
        mask = own.mask(level)
        point = _point(decomposition, own.parts, mask, block, entropies)
        _add(curves["components"], level, float((mask @ own_ranks).mean()), point)
    sizes = list(zip(levels, curves["components"].active_rank, strict=True))
    names = equal_rank.fitting(tuple(equal_rank.NAMES), target, block)
    terms = equal_rank.terms_of_baselines(names, target)
    scored = equal_rank.term_scores(own.objective, target, terms, block.x) if terms else {}
    for name in names:
        size = equal_rank.SizeToMatch(count, active_rank=sizes[0][1], active=sizes[0][0])
        kind = equal_rank.KINDS[name]
        made = equal_rank.make(name, terms[kind], np.asarray(scored[kind]), block, size)
        scores, curves[name] = made.scores(np.asarray(scored[kind])), LevelCurve([], [], [], [])
        for level, rank in sizes:
            k = min(float(level if name == "bundled" else max(rank, 1.0)), scores.shape[-1])
            mask = rows.largest(scores, k, block)
            point = _point(decomposition, made.parts, mask, block, entropies)
            _add(curves[name], level, float(rank), point)
    return curves


def _add(curve: LevelCurve, level: float, rank: float, point: tuple[float, float]) -> None:
    for values, value in zip(curve, (float(level), rank, *point), strict=True):
        values.append(value)


def describe(
    decomposition: Decomposition, x: np.ndarray, scores: np.ndarray
) -> tuple[list[Described], np.ndarray]:
    """Contexts of the components that are ever active, and the active share [C] of all.

    Args:
      decomposition: a decomposition of a language model, per position.
      x: [N, T] bytes.
      scores: [N, T, C] attributions on them.
    """
    block, _ = rows.examples(decomposition.target, x, None, None, True)
    mask = rows.select(decomposition.objective, scores, block).reshape(-1, scores.shape[-1])
    table = ranking.shares(scores.reshape(mask.shape))
    share = mask.mean(axis=0)
    squares = {
        site: np.sum(np.square(values), axis=1)
        for site, values in ranks.singular_values(decomposition.components).items()
    }
    order = [int(c) for c in np.argsort(-share, kind="stable") if share[c] > 0]
    if not order:
        return [], share
    best = {c: _best(np.flatnonzero(mask[:, c]), table[:, c]) for c in order}
    taken = np.concatenate([np.full(len(found), c) for c, found in best.items()])
    examples = np.concatenate(list(best.values())) // x.shape[1]
    change = without.changes(decomposition, x, taken, examples)
    described = [
        Described(
            c,
            float(share[c]),
            _sites(squares, c),
            float(change[taken == c].mean()),
            [_context(x, int(row), table[row, c]) for row in best[c]],
        )
        for c in order
    ]
    return described, share


def _best(active: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The positions with the largest shares [R] among those where a component is active."""
    return active[ranking.rows(share[active], _SHOWN)]


def _context(x: np.ndarray, place: int, share: float) -> Context:
    """The byte at a place among all positions, with those around it."""
    example, position = divmod(place, x.shape[1])
    row = x[example]
    before = decode(row[max(0, position - _BEFORE) : position])
    after = decode(row[position + 1 : position + 1 + _AFTER])
    return Context(before, decode(row[position : position + 1]), after, float(share))


def _sites(squares: dict[str, np.ndarray], component: int) -> str:
    """The sites with most of a component's squared weights: "blocks/0/mlp/up 80 %, ..."."""
    total = max(sum(values[component] for values in squares.values()), 1e-30)
    shares = sorted(((values[component] / total, site) for site, values in squares.items()))[::-1]
    return ", ".join(f"{site} {share:.0%}" for share, site in shares[:3] if share >= 0.05)
