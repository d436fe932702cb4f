"""Baselines without training, of the active rank or with the bits of a decomposition.

Letters: R rows, Q rank-one terms of all sites, C components.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.attribution import attribute_terms, used_together
from apd_jax.attribution.terms import Terms
from apd_jax.components import Factors
from apd_jax.evaluation.evidence import rows
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.masked.columns import Columns, alone_in_blocks
from apd_jax.objective.objective import Objective
from apd_jax.programs import linalg
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target

NAMES = {
    "svd": "singular vectors of every matrix, one by one, chosen by attribution, of the same rank",
    "bundled": "singular vectors that are used together, in as many bundles as there are "
    "components; as many bundles are active as components",
    "neurons": "columns of every matrix, one by one, chosen by attribution, of the same rank",
}
KINDS = {"svd": "svd", "bundled": "svd", "neurons": "neurons"}  # of their terms
_MOST_NUMBERS = 100_000_000  # scores of a block, or factors
_ROWS = 512  # that bundles are made from


class Baseline(NamedTuple):
    """A baseline, ready to be run.

    Attributes:
      name: one of `NAMES`.
      kind: what its terms are, `"svd"` or `"neurons"`.
      parts: rank-one terms, each with its weight's column.
      bundle: [Q] the bundle of every term, None where terms stand alone.
      k: the active terms (or bundles) of a row, on average, at equal size.
    """

    name: str
    kind: str
    parts: Parts
    bundle: np.ndarray | None
    k: float

    def scores(self, of_terms: np.ndarray) -> np.ndarray:
        """Attributions of the terms (or bundles), [B, (T), Q], from those of the terms."""
        return of_terms if self.bundle is None else _of_bundles(of_terms, self.bundle)

    def choose(self, of_terms: np.ndarray, block: Examples) -> np.ndarray:
        """The active terms (or bundles) of a block, bool [B, (T), Q], from its terms' scores."""
        # k is a mean over rows: times their number it may be rounded below a whole number.
        return rows.largest(self.scores(of_terms), self.k + 1e-9, block)


class SizeToMatch(NamedTuple):
    """What baselines have to match.

    Attributes:
      num_components: C.
      active_rank: rank of the decomposition's active components, the mean over rows.
      active: L0, the mean number of active components.
    """

    num_components: int
    active_rank: float
    active: float


def fitting(names: Sequence[str], target: Target, block: Examples) -> list[str]:
    """The baselines that the network is not too large for."""
    numbers = block.counts.size

    def fits(name: str) -> bool:
        shapes = jax.eval_shape(lambda: terms_of(KINDS[name], target))
        total = sum(one.num_components for one in shapes.values())
        return max(total * numbers, sum(f.size for f in jax.tree.leaves(shapes))) <= _MOST_NUMBERS

    return [name for name in names if fits(name)]


def make(
    name: str, terms: Terms, scores: np.ndarray, block: Examples, size: SizeToMatch
) -> Baseline:
    """Make a baseline.

    Args:
      name: one of `NAMES`.
      terms: those of its kind.
      scores: their attributions on a block, [B, (T), Q], which bundles are made from.
      block: the block.
      size: what it has to match.
    """
    kind, lead = KINDS[name], scores.shape[:-1]
    owner = owners(terms)
    least, total = 1.0 / int(np.prod(lead)), scores.shape[-1]
    if name != "bundled":
        k = float(np.clip(size.active_rank, least, total))
        return Baseline(name, kind, Parts(terms, owner), None, k)
    bundle = bundles(scores[usable_rows(scores, block)], min(size.num_components, total))
    owner = {site: jnp.asarray(bundle[np.asarray(places)]) for site, places in owner.items()}
    k = float(np.clip(size.active, least, int(bundle.max()) + 1))
    return Baseline(name, kind, Parts(terms, owner), bundle, k)


def usable_rows(scores: np.ndarray, block: Examples) -> np.ndarray:
    """Rows that count and have finite scores alone, bool [B, (T)]: NaN would reach every bundle."""
    return rows.rows_that_count(block.counts, scores.shape[:-1]) & _finite(scores)


def _finite(scores: np.ndarray) -> np.ndarray:
    return np.isfinite(scores).all(axis=-1)


def terms_of_baselines(names: Sequence[str], target: Target) -> dict[str, Terms]:
    """`{kind: terms}` of some baselines."""
    kinds = dict.fromkeys(KINDS[name] for name in names)
    return {kind: terms_of(kind, target) for kind in kinds}


def terms_of(kind: str, target: Target) -> Terms:
    """Rank-one terms of every site that add up to it: `"svd"` or `"neurons"`."""
    if kind == "neurons":
        return {site: Columns(w.astype(jnp.float32)) for site, w in target.weights.items()}
    return {site: _singular(weight) for site, weight in target.weights.items()}


def _singular(weight: jax.Array) -> Factors:
    """Singular vectors of every block as terms of their own, [G·q, (G,) 1, d]."""
    left, values, right = linalg.svd(weight.astype(jnp.float32))
    sides = jnp.swapaxes(left, -1, -2), values[..., None] * right
    return alone_in_blocks(*sides)


def owners(terms: Terms) -> dict[str, jax.Array]:
    """The number of every term, counted through the sites: its column in a mask."""
    numbers, start = {}, 0
    for site, one in terms.items():
        numbers[site] = jnp.arange(start, start + one.num_components, dtype=jnp.int32)
        start += one.num_components
    return numbers


@jit_with_network(static=1)
def term_scores(
    objective: Objective, target: Target, kinds: dict[str, Terms], x: PyTree
) -> dict[str, jax.Array]:
    """Attributions `{kind: [B, (T), Q]}` of the terms of every kind, by the objective's method."""
    options = objective.attribution_options(x)
    return attribute_terms(objective.attribution, target, kinds, x, **options)


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
    """Assign terms to bundles of those used together, see `used_together.similarity`.

    Args:
      scores: [R, Q] attributions; the first rows without NaN or infinity are used.
      count: the number of bundles.

    Returns:
      [Q] int32, with every bundle from 0 to the highest used.
    """
    scores = scores[_finite(scores)][:_ROWS]
    return np.unique(_groups(scores, count), return_inverse=True)[1].astype(np.int32)


@functools.partial(jax.jit, static_argnums=1)
@jax.default_matmul_precision("highest")
def _groups(scores: jax.Array, count: int) -> jax.Array:
    """The group of every term, [Q]."""
    mass = jnp.linalg.norm(scores, axis=0)
    return jnp.argmax(used_together.similarity(scores, mass, count), axis=1)
