"""Gather: a mechanism that many components hold in part is collected in a free component.

Letters: R rows of the mask, C components.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from apd_jax.components import Components
from apd_jax.programs import linalg
from apd_jax.training.initialisation.groups import SHARPNESS
from apd_jax.training.refine import shares
from apd_jax.training.refine.activity import Activity
from apd_jax.training.refine.split import choose_free

_ITERATIONS = 30


def worst_direction(directions: jax.Array, errors: jax.Array) -> jax.Array:
    """Find the input direction of the single mechanism on which the masked output errs most.

    The leading generalised eigenvector of `Σ e x̂ x̂ᵀ` against `mean(e) Σ x̂ x̂ᵀ` is the direction of
    most error per input, but if several mechanisms err alike it is any mixture of them: second
    moments cannot tell them apart. Fourth moments can, as in independent component analysis: sparse
    mechanisms are directions of maximal kurtosis. The fixed-point iteration `v <- Σ e (ẑ·v)³ ẑ` on
    whitened inputs ẑ, started at the eigenvector, therefore converges to one of the mechanisms.

    Args:
      directions: [R, d], inputs at unit norm.
      errors: [R], the errors e.

    Returns:
      [d], at unit norm.
    """
    against = jnp.mean(errors) * directions.T @ directions
    width = against.shape[0]
    ridge = shares.RIDGE * jnp.trace(against) / width + 1e-30
    lower = linalg.cholesky(against + ridge * jnp.eye(width))
    whitened = linalg.solve_lower(lower, directions.T)
    # Whitened by the plain second moments, inputs that occur often do not count for more: only
    # where errors are larger than the average does the direction stand out.
    _, vectors = linalg.eigh((whitened * errors) @ whitened.T)

    def power(_, v):
        v = whitened @ (errors * (v @ whitened) ** 3)
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    leading = jax.lax.fori_loop(0, _ITERATIONS, power, vectors[:, -1])
    # `ẑ = L⁻¹ x̂` for the factor L, so that the inputs' own direction is `L v`.
    direction = lower @ leading
    return direction / jnp.maximum(jnp.linalg.norm(direction), 1e-30)


def collect(components: Components, activity: Activity, near: jax.Array, d, store) -> Components:
    """Give component `d` all that the components together read on the examples of weight `near`.

    Args:
      components: `{site: Factors}`.
      activity: what the components do on a batch.
      near: [R] in [0, 1], how close each example is to the gathered direction.
      d: component that collects; what it held goes to `store`.
      store: component that takes what `d` held.
    """
    # Examples between the direction and the others would blur the partition: they count little.
    inside, outside = near**SHARPNESS, (1 - near) ** SHARPNESS * activity.counted

    def collected(factors, second, moment):
        # First d has to be empty, or the sum of the components would change.
        factors = shares.add_into(factors, store, d)
        part = functools.partial(shares.partition(second), moment)
        rank, total = factors.reads.shape[1], factors.sum()
        # `Π θ` as two narrow factors: the map is applied to the side that is not larger.
        if total.shape[0] <= total.shape[1]:
            taken = shares.compress(part(jnp.eye(len(total))), total, rank)
        else:
            taken = shares.compress(part(total.T), jnp.eye(total.shape[1]), rank)
        # What d collects is taken out of every component: `Σ_c P_c = Σ_c Π P_c + Σ_c (1 − Π) P_c`.
        kept = factors.reads - part(factors.reads)
        return factors._replace(
            reads=kept.at[d].set(taken.reads), writes=factors.writes.at[d].set(taken.writes)
        )

    moments = activity.moments(inside + outside, inside)
    return shares.each_site(collected, components, *moments)


def gather(
    components: Components,
    activity: Activity,
    free: jax.Array,
    errors_of: Callable[[Components], jax.Array],
    *,
    share: float,
    limit: int,
) -> tuple[Components, jax.Array, jax.Array]:
    """Gather the directions of largest error into free components, one after another.

    Args:
      components: `{site: Factors}`.
      activity: what the components do on a batch.
      free: [C] bool, components that may be used.
      errors_of: function from components to their errors [R] on the same batch.
      share: least error on the examples of a direction, in units of the error of no component.
      limit: largest number of directions.

    Returns:
      The components, the number of directions gathered, and [C] bool, the components touched.
    """

    def more(carry):
        _, _, free, count, tried = carry
        # Directions come in descending order of error: if one did not pay, the next ones won't.
        return (tried < limit) & (count == tried) & jnp.any(free)

    def attempt(carry):
        components, errors, free, count, tried = carry
        near = jnp.square(activity.directions @ worst_direction(activity.directions, errors))
        d, store = choose_free(components, free, jnp.argmax(activity.mass))
        candidate = collect(components, activity, near, d, store)
        after = errors_of(candidate)
        # Judged on the examples of this direction: in the mean over all examples a rare mechanism
        # would hardly show. The mean must not rise either.
        pure = near**SHARPNESS
        lost = pure @ errors
        good = (lost > share * (pure @ activity.stakes)) & (pure @ after < 0.5 * lost)
        good &= jnp.mean(after) < jnp.mean(errors)
        components = shares.select(good, candidate, components)
        errors = jnp.where(good, after, errors)
        return components, errors, free.at[d].set(free[d] & ~good), count + good, tried + 1

    start = components, activity.errors, free, jnp.int32(0), jnp.int32(0)
    components, _, _, count, _ = jax.lax.while_loop(more, attempt, start)
    return components, count, jnp.broadcast_to(count > 0, free.shape)
