"""Gather: what no component took, and many hold in part, becomes a free component's.

Letters: R rows of the mask, C components.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.training.initialisation.groups import SHARPNESS
from apd_jax.training.refine import shares
from apd_jax.training.refine.evidence import Evidence
from apd_jax.training.refine.shares import Parts
from apd_jax.training.refine.split import choose_free

_ITERATIONS = 30


def worst_direction(directions: jax.Array, errors: jax.Array) -> jax.Array:
    """The single mechanism's input direction on which the masked output errs most.

    The leading generalised eigenvector of `Σ e x̂ x̂ᵀ` against `mean(e) Σ x̂ x̂ᵀ` mixes mechanisms
    that err alike. From there, power iteration `v <- Σ e (ẑ·v)³ ẑ` on whitened inputs ẑ settles on
    one of them, as long as mechanisms are sparse.

    Args:
      directions: [R, d], inputs at unit norm.
      errors: [R], e.

    Returns:
      [d], at unit norm.
    """
    against = jnp.mean(errors) * directions.T @ directions
    width = against.shape[0]
    ridge = shares.RIDGE * jnp.trace(against) / width + 1e-30
    lower = jnp.linalg.cholesky(against + ridge * jnp.eye(width))
    whitened = jax.scipy.linalg.solve_triangular(lower, directions.T, lower=True)
    _, vectors = jnp.linalg.eigh((whitened * errors) @ whitened.T)

    def power(_, v):
        v = whitened @ (errors * (v @ whitened) ** 3)
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    leading = jax.lax.fori_loop(0, _ITERATIONS, power, vectors[:, -1])
    direction = lower @ leading
    return direction / jnp.maximum(jnp.linalg.norm(direction), 1e-30)


def collect(components: Parts, evidence: Evidence, near: jax.Array, d, store) -> Parts:
    """Give `d` everything that all components read on the examples of weight `near` [R]."""
    collected = {}
    for site, factors in components.items():
        factors = shares.add_into(factors, store, d)
        rows = evidence.rows[site]
        width = factors.reads.shape[-1]
        inside, outside = near**SHARPNESS, (1 - near) ** SHARPNESS
        part = shares.partition(rows, inside + outside)(inside, jnp.eye(width))
        total = factors.sum()
        taken = shares.compress(part, total, factors.reads.shape[1])
        kept = factors.reads - factors.reads @ part
        collected[site] = factors._replace(
            reads=kept.at[d].set(taken.reads), writes=factors.writes.at[d].set(taken.writes)
        )
    return collected


def gather(
    components: Parts,
    evidence: Evidence,
    free: jax.Array,
    errors_of: Callable[[Parts], jax.Array],
    *,
    share: float,
    limit: int,
) -> tuple[Parts, jax.Array, jax.Array]:
    """Gather the directions of largest error in free components, one after another.

    Args:
      components: `{part: Factors}`, blocks of stacked sites apart.
      evidence: what they do.
      free: [C] bool, components that may be used.
      errors_of: errors [R] of components on the examples of the evidence.
      share: of the stakes that must be lost on the examples of a direction.
      limit: at most so many directions.

    Returns:
      The components, how many directions were gathered, and [C] bool, which were touched.
    """

    def more(carry):
        _, _, free, count, tried = carry
        # The next direction errs less: where one did not pay, neither will the others.
        return (tried < limit) & (count == tried) & jnp.any(free)

    def attempt(carry):
        components, errors, free, count, tried = carry
        near = jnp.square(evidence.directions @ worst_direction(evidence.directions, errors))
        d, store = choose_free(components, free, jnp.argmax(evidence.mass))
        candidate = collect(components, evidence, near, d, store)
        after = errors_of(candidate)
        pure = near**SHARPNESS
        lost = pure @ errors
        good = (lost > share * (pure @ evidence.stakes)) & (pure @ after < 0.5 * lost)
        good &= jnp.mean(after) < jnp.mean(errors)
        components = shares.select(good, candidate, components)
        errors = jnp.where(good, after, errors)
        return components, errors, free.at[d].set(free[d] & ~good), count + good, tried + 1

    start = components, evidence.errors, free, jnp.int32(0), jnp.int32(0)
    components, _, _, count, _ = jax.lax.while_loop(more, attempt, start)
    return components, count, jnp.broadcast_to(count > 0, free.shape)
