"""What happens at the end of a chunk of steps: metrics and states are checked and passed on.

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


class Observer:
    """Callbacks between chunks. These do nothing; override what is wanted."""

    def on_metrics(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        """Receive the metrics [S] of a chunk's last step; for the group `count/`, sums over it."""

    def save(self, step: int, state: PyTree) -> None:
        """Keep the state after `step` steps. Its buffers are reused as soon as this returns."""

    def should_stop(self) -> bool:
        """Whether to save and raise `Stopped` after this chunk."""
        return False


def report(observer: Observer, done: int, parts: list[Metrics]) -> None:
    """Fetch a chunk's metrics, check that they are finite, and pass on those of its last step.

    Counts of events are summed over the chunk.
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
    last = {n: v.sum(axis=1) if metric_names.counts(n) else v[:, -1] for n, v in values.items()}
    observer.on_metrics(done, last)


@jax.jit
def _finite(state: PyTree) -> jax.Array:
    """Whether all of each leaf is finite; bool [number of leaves]."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)])


def _broken_places(state: PyTree) -> list[int]:
    """The places in which a state is not finite; empty if other processes hold some of them."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.is_fully_addressable]
    rows = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
    return np.flatnonzero(~np.all(rows, axis=0)).tolist() if rows else []


def save(observer: Observer, done: int, state: PyTree) -> None:
    """Let the observer save a state, if all of it is finite."""
    finite = np.asarray(_finite(state))
    if not finite.all():
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        broken = [paths[i] for i in np.flatnonzero(~finite)]
        raise Diverged(
            f"{' and '.join(map(leaf_name, broken))} of the state stopped being finite by step "
            f"{done}; {_HINT}",
            places=_broken_places(state),
        )
    observer.save(done, state)
