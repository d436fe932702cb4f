"""Lines of the decomposition itself on one block of examples.

Letters: B examples of a block, T positions, C components.
"""

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.evaluation.evidence import distance, rows
from apd_jax.evaluation.evidence.parts import mixture
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.evaluation.evidence.run import Run, halves

POOLED = (8, 64)


class SharedMatrices:
    """Matrices that are the same for all blocks, made once.

    Attributes:
      whole: `{site: Σ_c P_c}`.
      used: the same over the components that are active on some row.
      none: zeros.
    """

    def __init__(self, run: Run, used: np.ndarray):
        components = run.components
        self.whole = mixture(components, jnp.ones(len(used)))
        self.used = mixture(components, jnp.asarray(used, jnp.float32))
        self.none = jax.tree.map(jnp.zeros_like, self.whole)


def add(run: Run, block: Examples, mask: np.ndarray, sums: SharedMatrices, key: jax.Array) -> int:
    """Add a block to every line; return the number of rows in the largest group of pooled rows."""
    _weights(run, block, sums)
    _masks(run, block, mask, key)
    run.attack("adversarial", block, mask, jax.random.fold_in(key, 3), run.parts, run.adversary)
    count = int(rows.rows_that_count(block.counts, mask.shape[:-1]).sum())
    return min(POOLED[-1], count)


def _weights(run: Run, block: Examples, sums: SharedMatrices) -> None:
    """Lines of the network with other matrices."""
    run.replaced("all", block, sums.whole)
    run.replaced("zero", block, sums.none)
    plain = block.without_labels()
    run.replaced("never_needed", plain, sums.used)
    for site in run.components:
        weights = run.target.weights | {site: sums.whole[site]}
        run.replaced(f"replaced {site}", plain, weights)
    if block.labels is not None:
        run.tally.add("target", distance.of_itself(run.kind, run.target, block))


def _masks(run: Run, block: Examples, mask: np.ndarray, key: jax.Array) -> None:
    """Lines of one mask each, and of random ones."""
    parts, plain = run.parts, block.without_labels()
    run.measure("own", block, mask, parts)
    run.random("random", block, mask, jax.random.fold_in(key, 0), parts, jax.random.uniform)
    run.random("random_half", block, mask, jax.random.fold_in(key, 1), parts, halves)
    for count in POOLED:
        pooled = rows.pool(mask, plain, count)
        groups = pooled.group if mask.ndim == 2 else None  # else groups lie within examples, mostly
        run.measure(f"pooled_{count}", pooled.block, pooled.mask, parts, groups=groups)
    if rows.rows_that_count(block.counts, mask.shape[:-1]).sum() > 1:
        other = rows.permuted(mask, block.counts, jax.random.fold_in(key, 2))
        run.measure("permuted", plain, other, parts)
    else:  # there is no other row
        run.advance("masks")
