"""Pairing of the components of two decompositions of one network: do seeds agree?

Letters: C, D components of the two, S decompositions, G stacked blocks, m rank.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from apd_jax.components import Components, Factors, squared_norms
from apd_jax.config_fields import values
from apd_jax.errors import UserError
from apd_jax.evaluation import tables
from apd_jax.sites.leaf_names import leaf_names

MATCHED = 0.9  # cosine from where on two components are the same
LEAST_NORM = 0.01  # of the largest norm: smaller components are empty and not compared


@dataclasses.dataclass(frozen=True, repr=False)
class Match:
    """The components of two decompositions, paired; printed, a table.

    Attributes:
      pairs: [n, 2] numbers of the paired components, largest cosine first.
      cosines: [n] their cosines over all sites.
      unmatched_first, unmatched_second: components without a partner of cosine `threshold`.
      empty_first, empty_second: components of next to no norm, which are not compared.
      mmcs_first: mean over the first one's components of the largest cosine with any of the second;
        0 if all components of one of the two are empty.
      mmcs_second: the same from the second to the first.
      threshold: cosine from where on a pair is matched.
    """

    pairs: np.ndarray
    cosines: np.ndarray
    unmatched_first: list[int]
    unmatched_second: list[int]
    empty_first: list[int]
    empty_second: list[int]
    mmcs_first: float
    mmcs_second: float
    threshold: float

    @property
    def matched_share(self) -> float:
        """Share of the components, of both together, that have a partner."""
        matched = 2 * int(np.sum(self.cosines >= self.threshold))
        total = matched + len(self.unmatched_first) + len(self.unmatched_second)
        return matched / max(total, 1)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            ["first to second", tables.number(self.mmcs_first), str(len(self.unmatched_first))],
            ["second to first", tables.number(self.mmcs_second), str(len(self.unmatched_second))],
        ]
        return ["", "MMCS", "unmatched"], rows

    def _sentences(self) -> list[str]:
        empty = len(self.empty_first), len(self.empty_second)
        return [
            f"{self.matched_share:.1%} of the components have a partner of cosine at least "
            f"{self.threshold:g}; {empty[0]} and {empty[1]} are empty and not compared."
        ]

    def __repr__(self) -> str:
        return "\n".join([tables.text(*self._table()), *self._sentences()])

    def _repr_html_(self) -> str:
        return tables.as_html("Comparison", *self._table(), self._sentences())


@dataclasses.dataclass(frozen=True, repr=False)
class SeedMatrix:
    """Every pair of several decompositions compared.

    Attributes:
      mmcs: [S, S], entry (i, j) the mean over i's components of the largest cosine with any of j.
      matched: [S, S], share of the components of i and j that have a partner.
      names: names of the decompositions.
      threshold: cosine from where on a pair is matched.
    """

    mmcs: np.ndarray
    matched: np.ndarray
    names: list[str]
    threshold: float = MATCHED

    def mean(self) -> tuple[float, float]:
        """Mean over pairs of different decompositions of MMCS and of the matched share."""
        apart = ~np.eye(len(self.names), dtype=bool)
        return float(self.mmcs[apart].mean()), float(self.matched[apart].mean())

    def sentence(self) -> str:
        """How far decompositions agree, in words."""
        mmcs, matched = self.mean()
        return (
            f"{len(self.names)} initialisations were trained. Over pairs of them, {matched:.1%} of "
            f"the components have a partner of cosine at least {self.threshold:g}, and the MMCS is "
            f"{mmcs:.3f}."
        )

    def __repr__(self) -> str:
        head = ["MMCS", *self.names]
        rows = [
            [name, *(f"{value:.3f}" for value in row)]
            for name, row in zip(self.names, self.mmcs.tolist(), strict=True)
        ]
        mmcs, matched = self.mean()
        last = f"Mean over pairs: MMCS {mmcs:.3f}, matched {matched:.1%}."
        return f"{tables.text(head, rows)}\n{last}"


def compare(first: Any, second: Any, *, threshold: float = MATCHED) -> Match:
    """Pair the components of two decompositions of one network.

    Pairs are those of the largest total cosine (Hungarian algorithm). A cosine is that of two
    components as vectors over all sites, `⟨P_c, Q_d⟩ / (‖P_c‖ ‖Q_d‖)`, from their factors.

    Args:
      first: a `Decomposition`, or components `{site: Factors}`.
      second: another one of the same network.
      threshold: cosine from where on a pair is matched.

    Returns:
      A `Match`.

    Raises:
      UserError: an argument that is no decomposition, decompositions of different networks, or a
        threshold outside of (0, 1].
    """
    threshold = values.finite("threshold", threshold)
    if not 0 < threshold <= 1:
        raise UserError(f"threshold must be in (0, 1], got {threshold}")
    ours, theirs = _components(first), _components(second)
    _check_alike(ours, theirs)
    _check_network(first, second)
    table = cosines(ours, theirs)
    mine, other = _full(ours), _full(theirs)
    kept = table[np.ix_(mine, other)]
    rows, columns = optimize.linear_sum_assignment(-kept)
    order = np.argsort(-kept[rows, columns], kind="stable")
    pairs = np.stack([mine[rows], other[columns]], axis=1)[order]
    best = kept[rows, columns][order]
    matched = pairs[best >= threshold]
    return Match(
        pairs=pairs,
        cosines=best,
        unmatched_first=sorted(set(mine.tolist()) - set(matched[:, 0].tolist())),
        unmatched_second=sorted(set(other.tolist()) - set(matched[:, 1].tolist())),
        empty_first=sorted(set(range(len(table))) - set(mine.tolist())),
        empty_second=sorted(set(range(table.shape[1])) - set(other.tolist())),
        mmcs_first=float(kept.max(axis=1).mean()) if kept.size else 0.0,
        mmcs_second=float(kept.max(axis=0).mean()) if kept.size else 0.0,
        threshold=threshold,
    )


def compare_seeds(
    found: Sequence[Any], names: Sequence[str] | None = None, *, threshold: float = MATCHED
) -> SeedMatrix:
    """Compare every pair of several decompositions of one network; see `compare`."""
    if not isinstance(found, Sequence):
        raise UserError(
            f"compare_seeds takes a list of decompositions, got a {type(found).__name__}"
        )
    if len(found) < 2:
        raise UserError(f"a comparison needs at least 2 decompositions, got {len(found)}")
    count = len(found)
    names = [*map(str, range(count))] if names is None else [*values.names("names", names)]
    if len(names) != count:
        raise UserError(f"names must be one for each of {count} decompositions, got {names}")
    mmcs, matched = np.eye(count), np.eye(count)
    for i in range(count):
        for j in range(i):
            match = compare(found[i], found[j], threshold=threshold)
            mmcs[i, j], mmcs[j, i] = match.mmcs_first, match.mmcs_second
            matched[i, j] = matched[j, i] = match.matched_share
    return SeedMatrix(mmcs, matched, names, threshold)


def cosines(first: Components, second: Components) -> np.ndarray:
    """Cosines of all pairs of components over all sites, [C, D]; 0 where one is zero.

    They have 6 decimals, as products in float32 have no more: one with itself is 1.
    """
    table = np.asarray(_inner(first, second), np.float64)
    found = table / np.maximum(np.outer(_norms(first), _norms(second)), 1e-30)
    return np.clip(found.round(6), -1, 1)


def _norms(components: Components) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        squares = jax.jit(squared_norms)(components)
    return np.sqrt(np.maximum(np.asarray(squares, np.float64), 0.0))


def _full(components: Components) -> np.ndarray:
    """Numbers of the components that are not empty."""
    norms = _norms(components)
    if not np.isfinite(norms).all():
        raise UserError(
            f"components {np.flatnonzero(~np.isfinite(norms)).tolist()} hold NaN or infinity, or "
            "their norm does: they can't be compared"
        )
    return np.flatnonzero(norms >= max(LEAST_NORM * norms.max(), 1e-30))


@jax.jit
@jax.default_matmul_precision("highest")
def _inner(first: Components, second: Components) -> jax.Array:
    """`⟨P_c, Q_d⟩` over all sites, [C, D], one component of the first after another."""

    def one(component):
        alone = jax.tree.map(lambda leaf: leaf[None], component)
        return sum(_site_inner(alone[site], second[site])[0] for site in second)

    return jax.lax.map(one, first)


def _site_inner(ours: Factors, theirs: Factors) -> jax.Array:
    """`Σ_rs (u_r · u'_s)(v_r · v'_s)` of rank-one terms r, s: no matrix of the site's size."""
    reads = jnp.einsum("c...ri,d...si->cd...rs", ours.reads, theirs.reads)
    writes = jnp.einsum("c...ro,d...so->cd...rs", ours.writes, theirs.writes)
    return jnp.sum(reads * writes, axis=tuple(range(2, reads.ndim)))


def _components(found: Any) -> Components:
    """The components, on the first device of this process: two may lie on different ones."""
    components = getattr(found, "components", found)
    of_sites = list(components.values()) if isinstance(components, dict) else []
    if not of_sites or not all(isinstance(factors, Factors) for factors in of_sites):
        raise UserError(
            "compare takes decompositions, or components {site: Factors}; got a "
            f"{type(found).__name__}{'' if of_sites else ' without components'}"
        )
    return jax.device_put(components, jax.local_devices()[0])


def _check_alike(first: Components, second: Components) -> None:
    shapes = [
        {s: (*f.reads.shape[1:-2], f.reads.shape[-1], f.writes.shape[-1]) for s, f in c.items()}
        for c in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise UserError(
            "the decompositions are of different networks or sites, with sites "
            f"{shapes[0]} and {shapes[1]}: compare decompositions of the same sites of one network"
        )


def _check_network(first: Any, second: Any) -> None:
    """Refuse decompositions of networks with other weights, whose components have no partners."""
    one, other = getattr(first, "target", None), getattr(second, "target", None)
    if one is None or other is None or one is other:
        return
    try:
        ours, theirs = one.weights, other.weights
    except UserError:  # loaded from a run of a study: sites are known once the network has run
        ours, theirs = (
            dict(zip(leaf_names(target.params), jax.tree.leaves(target.params), strict=True))
            for target in (one, other)
        )
    for name, weight in ours.items():
        other_weight = theirs.get(name)
        same = other_weight is not None and weight.shape == other_weight.shape
        if not (same and np.allclose(weight, other_weight, rtol=1e-4, atol=1e-6)):
            raise UserError(
                f"the decompositions are of different networks: the weights of {name!r} differ; "
                "compare decompositions of one network that began from different seeds"
            )
