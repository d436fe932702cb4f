"""Checks at the end of a chunk of steps: metrics and states that are not finite end the training.

Letters: S seeds side by side.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.runtime import metric_names
from apd_jax.runtime.outcome import Diverged
from apd_jax.sites import leaf_name

PyTree = Any
Metrics = dict[str, jax.Array]

_SUMS = ("loss/total", "gradient_norm")
_HINT = (
    "try a lower learning rate or more warmup, and leave out examples on which the network's "
    "outputs overflow or have gradients that are NaN, as behind a division by 0 beside a where"
)


def last_metrics(done: int, parts: list[Metrics]) -> dict[str, np.ndarray]:
    """Fetch a chunk's metrics, and check that they are finite.

    Args:
      done: number of the chunk's last step.
      parts: the metrics of the chunk's steps, `{name: [S, length]}`.

    Returns:
      The metrics [S] of the last step; for the group `count/`, sums over the chunk.

    Raises:
      Diverged: one is not finite.
    """
    values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    length = next(iter(values.values())).shape[1]
    broken = {name: ~np.isfinite(value) for name, value in values.items()}
    steps = {name: np.argmax(bad.any(axis=0)) for name, bad in broken.items() if bad.any()}
    if steps:
        first = min(steps.values())
        names = sorted(name for name in steps if steps[name] == first)
        # Sums of terms break with their terms: name the terms.
        names = [name for name in names if name not in _SUMS] or names
        bad_seeds = np.flatnonzero(broken[names[0]][:, first]).tolist()
        raise Diverged(
            f"{' and '.join(names)} stopped being finite at step {done - length + 1 + int(first)}, "
            f"in the trainings at index {bad_seeds} of those side by side; {_HINT}",
            places=bad_seeds,
        )
    return {
        name: value.sum(axis=1) if name.startswith(metric_names.COUNT) else value[:, -1]
        for name, value in values.items()
    }


@jax.jit
def _finite(state: PyTree) -> jax.Array:
    """Whether all of each leaf is finite; bool [number of leaves]."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)])


def _broken_places(state: PyTree) -> list[int]:
    """The places in which a state is not finite; empty if other processes hold some of them."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.is_fully_addressable]
    rows = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    return np.flatnonzero(~np.all(rows, axis=0)).tolist() if rows else []


def check_state(done: int, state: PyTree) -> None:
    """Raise Diverged unless all of a state is finite."""
    finite = np.asarray(_finite(state))
    if not finite.all():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        broken = [paths[i] for i in np.flatnonzero(~finite)]
        raise Diverged(
            f"{' and '.join(map(leaf_name, broken))} of the state stopped being finite by step "
            f"{done}; {_HINT}",
            places=_broken_places(state),
        )
