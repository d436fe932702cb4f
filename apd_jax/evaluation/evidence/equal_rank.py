"""What needs no training, at the active rank or with the bits of a decomposition.

Letters: R rows, Q rank-one terms of all sites, C components.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.compiled import jit_with_network
from apd_jax.components import Components, Factors
from apd_jax.evaluation import baselines
from apd_jax.evaluation.evidence import rows
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target

NAMES = {
    "svd": "singular vectors of every matrix, one by one, chosen by attribution, of the same rank",
    "bundled": "singular vectors in as many bundles as there are components, those used together; "
    "as many bundles as components are active",
    "neurons": "columns of every matrix, one by one, chosen by attribution, of the same rank",
}
_MOST_NUMBERS = 100_000_000  # scores of a block, or factors
_ROWS = 512  # that bundles are made from
_ROUNDS = 10


class Baseline(NamedTuple):
    """A baseline, ready to be run.

    Attributes:
      parts: rank-one terms, each with its weight's column.
      terms: `{site: Factors}`, what attributions are taken of.
      bundle: [Q] the bundle of every term, None where terms stand alone.
      objective: the rule of the decomposition, whose attributions are taken.
      k: the active terms (or bundles) of a row, on average, at equal size.
    """

    parts: Parts
    terms: Components
    bundle: np.ndarray | None
    objective: Objective
    k: float

    def scores(self, target: Target, block: Examples) -> np.ndarray:
        """Attributions of the terms (or bundles) on a block, [B, (T), Q]."""
        scores = np.asarray(term_scores(self.objective, target, self.terms, block.x))
        return scores if self.bundle is None else _of_bundles(scores, self.bundle)

    def choose(self, target: Target, block: Examples) -> np.ndarray:
        """The active terms (or bundles) of a block, bool [B, (T), Q]."""
        return rows.largest(self.scores(target, block), self.k, block)


def make(
    name: str,
    objective: Objective,
    target: Target,
    block: Examples,
    *,
    count: int,
    active_rank: float,
    active: float,
) -> Baseline | None:
    """Make a baseline, or None where the network is too large for it.

    Args:
      name: one of `NAMES`.
      objective: the rule of the decomposition.
      target: the network.
      block: examples that bundles are made from.
      count: C.
      active_rank: rank of the decomposition's active components, the mean over rows.
      active: L0, the mean number of active components.
    """
    terms, owner = _terms("neurons" if name == "neurons" else "svd", target)
    total = sum(factors.num_components for factors in terms.values())
    if max(total * block.counts.size, sum(f.size for f in jax.tree.leaves(terms))) > _MOST_NUMBERS:
        return None
    num_rows = _num_rows(objective, block)
    if name != "bundled":
        k = float(np.clip(active_rank, 1.0 / num_rows, total))
        return Baseline(Parts(terms, owner), terms, None, objective, k)
    scores = np.asarray(term_scores(objective, target, terms, block.x))
    valid = np.asarray(rows.rows_that_count(block.counts, scores.shape[:-1]))
    bundle = bundles(scores[valid][:_ROWS], min(count, total))
    owner = {site: jnp.asarray(bundle[np.asarray(places)]) for site, places in owner.items()}
    k = float(np.clip(active, 1.0 / num_rows, int(bundle.max()) + 1))
    return Baseline(Parts(terms, owner), terms, bundle, objective, k)


def _num_rows(objective: Objective, block: Examples) -> int:
    return block.counts.size if objective.per_position else len(block.counts)


def _terms(kind: str, target: Target) -> tuple[Components, dict[str, jax.Array]]:
    """Rank-one terms of every site, and their numbers counted through the sites."""
    terms, numbers, start = {}, {}, 0
    for site, weight in target.weights.items():
        sides = baselines.site_terms(np.asarray(weight, np.float32), baselines.BASELINES[kind])
        terms[site] = Factors(*(jnp.asarray(side, jnp.float32) for side in sides))
        numbers[site] = jnp.asarray(np.arange(start, start + len(sides[0]), dtype=np.int32))
        start += len(sides[0])
    return terms, numbers


@jit_with_network(static=1)
def term_scores(objective: Objective, target: Target, terms: Components, x) -> jax.Array:
    """Attributions [B, (T), Q] of terms that belong to one site each, by the objective's method.

    The network is decomposed at one site after another: a term has nothing at the others.
    """
    found = []
    for site, factors in terms.items():
        found.append(objective.attribute(target.at_one_site(site), {site: factors}, x).scores)
    return jnp.concatenate(found, axis=-1)


def _of_bundles(scores: np.ndarray, bundle: np.ndarray) -> np.ndarray:
    """Attributions of bundles from those of their terms, [B, (T), Q], zeros after the last.

    The width stays that of the terms, so that both run in the same compiled programs.
    """
    order = np.argsort(bundle, kind="stable")
    starts = np.searchsorted(bundle[order], np.arange(bundle.max() + 1))
    squares = np.add.reduceat(np.square(scores[..., order]), starts, axis=-1)
    widths = [(0, 0)] * (scores.ndim - 1) + [(0, scores.shape[-1] - len(starts))]
    return np.pad(np.sqrt(squares), widths)


def bundles(scores: np.ndarray, count: int) -> np.ndarray:
    """Assign terms to bundles of those used together: spherical k-means on their attributions.

    The first centre is the term of the largest mass, each next one the term with the most mass
    away from the centres before it.

    Args:
      scores: [R, Q] attributions.
      count: the number of bundles.

    Returns:
      [Q] int32, with every bundle from 0 to the highest used.
    """
    mass = np.linalg.norm(scores, axis=0)
    points = (scores / np.maximum(mass, 1e-30)).T
    centres = [int(np.argmax(mass))]
    nearest = points @ points[centres[0]]
    for _ in range(count - 1):
        away = mass**2 * (1 - np.clip(nearest, 0, 1) ** 2)
        away[centres] = -1.0
        centres.append(int(np.argmax(away)))
        nearest = np.maximum(nearest, points @ points[centres[-1]])
    means = points[centres]
    for _ in range(_ROUNDS):
        assigned = np.argmax(points @ means.T, axis=1)
        sums = np.zeros_like(means)
        np.add.at(sums, assigned, points * mass[:, None])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        means = np.where(norms > 0, sums / np.maximum(norms, 1e-30), means)
    return np.unique(assigned, return_inverse=True)[1].astype(np.int32)
