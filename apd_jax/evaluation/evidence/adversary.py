"""The worst masks: inactive components scaled by r in [0, 1] so that outputs differ the most.

Letters: B examples, T positions, C components, e an example's summed distance.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import validity
from apd_jax.components import Components, num_components
from apd_jax.config_fields.values import KINDS, as_float, number, sequence, whole
from apd_jax.errors import UserError
from apd_jax.evaluation.evidence.distance import Kind, Sums, compare
from apd_jax.evaluation.evidence.parts import Parts, run
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.objective.partial import scaled
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import Target


def rising(name: str, value: Any) -> tuple[int, ...]:
    """Numbers of steps as a tuple; raises UserError unless they are whole, positive and rising."""
    one = number(value)
    steps = (one,) if isinstance(one, int) else sequence(value)
    counts = isinstance(steps, tuple) and all(KINDS[int](n) and n >= 1 for n in steps)
    if not counts or not steps or list(steps) != sorted(set(steps)):
        raise UserError(f"{name} must be rising whole numbers from 1 on, got {value}")
    return steps


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Signed gradient ascent on r, from `r ~ U(0, 1)`.

    A step is `r <- clip(r + step_size · sign(∂e/∂r), 0, 1)`. One path serves all step counts: the
    value at n steps is the largest of r_0 to r_n, and of the starts; for masks per row the largest
    for every example, for the shared mask that of the largest total.

    Attributes:
      steps: the numbers of steps that are reported, in rising order.
      step_size: step size of r; 0.1 crosses the interval in ten steps.
      starts: number of random starts.
    """

    steps: Sequence[int] = (20, 80)
    step_size: float = 0.1
    starts: int = 1

    def __post_init__(self):
        steps = rising("adversary_steps", self.steps)
        step_size = number(self.step_size)
        if not KINDS[float](step_size) or not 0 < step_size <= 1:
            raise UserError(f"adversary_step_size must be in (0, 1], got {self.step_size!r:.200}")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "step_size", as_float(step_size))
        object.__setattr__(self, "starts", whole("adversary_starts", self.starts))


@jit_with_network(static=1)
@jax.default_matmul_precision("highest")
def ascend(
    kind: Kind,
    target: Target,
    parts: Parts,
    block: Examples,
    mask: jax.Array,
    r: jax.Array,
    best: jax.Array,
    steps: jax.Array,
    step_size: jax.Array,
) -> tuple[jax.Array, Sums]:
    """Take some steps for every row of a block.

    Args:
      kind: the distance.
      target: the network.
      parts: what the mask scales.
      block: examples.
      mask: [B, (T), C] bool, active components.
      r: starting point, of the same shape.
      best: [B] the largest e so far.
      steps: number of steps.
      step_size: step size of r.

    Returns:
      r after the steps, and sums with the largest e of every example.
    """

    def total(r):
        sums = compare(kind, run(target, parts, block.x, scaled(mask, r)), block)
        return jnp.sum(sums.error), sums

    def step(_, state):
        r, best = state
        gradient, sums = jax.grad(total, has_aux=True)(r)
        moved = jnp.clip(r + step_size * jnp.sign(_usable(gradient, block)), 0.0, 1.0)
        return moved, jnp.maximum(best, sums.error).astype(best.dtype)

    r, best = jax.lax.fori_loop(0, steps, step, (r, best))
    last = total(r)[1]
    return r, last._replace(error=jnp.maximum(best, last.error))


@jit_with_network(static=1)
@jax.default_matmul_precision("highest")
def shared_gradient(
    kind: Kind,
    target: Target,
    components: Components,
    block: Examples,
    mask: jax.Array,
    r: jax.Array,
) -> tuple[jax.Array, Sums]:
    """Gradient [C] of a block's total e with respect to the r [C] of all rows, and its sums."""
    block = block._replace(outputs=target(block.x))  # not kept: N·T·V numbers

    def total(each):
        # Dense products: those of the active pairs alone, with one matrix for the rest, are fewer
        # and were more than twice as slow.
        sums = compare(kind, run(target, Parts(components), block.x, scaled(mask, each)), block)
        return jnp.sum(sums.error), sums

    gradient, sums = jax.grad(total, has_aux=True)(jnp.broadcast_to(r, mask.shape))
    return _usable(gradient, block).reshape(-1, mask.shape[-1]).sum(axis=0), sums


def _usable(gradient: jax.Array, block: Examples) -> jax.Array:
    """A gradient [B, (T), C], 0 where a row that does not count has NaN: 0 · NaN is NaN.

    Finite ones stay, as a position that does not count may be read by one that does.
    """
    counted = validity.of_rows(jnp.asarray(block.counts) > 0, gradient.shape[:-1])[..., None]
    return jnp.where(counted | jnp.isfinite(gradient), gradient, 0.0)


def worst_per_row(
    adversary: Adversary,
    kind: Kind,
    target: Target,
    parts: Parts,
    block: Examples,
    mask: np.ndarray,
    key: jax.Array,
    advance: Callable[[int], None],
) -> dict[int, Sums]:
    """The worst masks of every row of a block, `{steps: sums}`."""
    block = block.without_labels()
    found: dict[int, Sums] = {}
    for start in range(adversary.starts):
        r = jax.random.uniform(jax.random.fold_in(key, start), mask.shape)
        best, done = np.full(mask.shape[:1], -np.inf, np.float32), 0
        for steps in adversary.steps:
            r, sums = ascend(
                kind, target, parts, block, mask, r, best, steps - done, adversary.step_size
            )
            sums = jax.device_get(sums)  # waits, so that what is counted is done
            advance(steps - done)
            best, done = sums.error, steps
            if start:
                sums = sums._replace(error=jnp.maximum(sums.error, found[steps].error))
            found[steps] = sums
    return found


class _Path(NamedTuple):
    """The strongest shared r so far: its total, and the blocks' sums."""

    total: float
    sums: list[Sums]


def worst_shared(
    adversary: Adversary,
    kind: Kind,
    target: Target,
    components: Components,
    blocks: Callable[[], Iterable[tuple[Examples, np.ndarray]]],
    key: jax.Array,
    advance: Callable[[int], None],
) -> dict[int, list[Sums]]:
    """The worst r that all rows share, `{steps: sums of every block}`.

    Args:
      adversary: the ascent.
      kind: the distance.
      target: the network.
      components: `{site: Factors}`.
      blocks: gives the blocks and their masks anew, one after another.
      key: PRNG key for the starts.
      advance: called with the number of passes through a block that were made.
    """
    best: dict[int, _Path] = {}
    for start in range(adversary.starts):
        first = jax.random.uniform(jax.random.fold_in(key, start), (num_components(components),))
        r = np.asarray(first)
        strongest = _Path(-np.inf, [])
        for step in range(adversary.steps[-1] + 1):
            gradient, sums = np.zeros_like(r), []
            for block, mask in blocks():
                plain = block.without_labels()
                one, here = jax.device_get(
                    shared_gradient(kind, target, components, plain, mask, r)
                )
                gradient += one
                sums.append(here)
                advance(1)
            total = float(sum(np.sum(s.error, dtype=np.float64) for s in sums))
            total = np.inf if np.isnan(total) else total  # nothing is worse
            if total > strongest.total:
                strongest = _Path(total, sums)
            if (
                step in adversary.steps
                and strongest.total > best.get(step, _Path(-np.inf, [])).total
            ):
                best[step] = strongest
            r = np.clip(r + np.float32(adversary.step_size) * np.sign(gradient), 0.0, 1.0)
    return {steps: path.sums for steps, path in best.items()}
