"""Rank-one terms of all sites in groups of those that matter on the same rows.

Letters: R rows, Q terms, C groups.
"""

import jax
import jax.numpy as jnp

_ROUNDS = 10


def similarity(uses: jax.Array, mass: jax.Array, count: int) -> jax.Array:
    """Cosines [Q, C] of the terms' uses to the centres of C groups: spherical k-means.

    The first centre is the term of the largest mass, each next one the term with the most mass away
    from the centres before it.

    Args:
      uses: [R, Q], how much each term matters on each row: its attributions.
      mass: [Q], the weights of the terms, such as the norms of their uses.
      count: C.
    """
    # Terms are compared by the pattern of rows on which they are used, not by how much.
    points = (uses / jnp.maximum(mass, 1e-30)).T

    def choose(state, _):
        nearest, taken = state
        away = jnp.where(taken, -1.0, mass**2 * (1 - jnp.clip(nearest, 0, 1) ** 2))
        following = jnp.argmax(away)
        nearest = jnp.maximum(nearest, points @ points[following])
        return (nearest, taken.at[following].set(True)), following

    first = jnp.zeros(len(points)), jnp.zeros(len(points), bool)
    _, chosen = jax.lax.scan(choose, first, length=count)

    def move(_, means):
        # A centre is weighted by mass: the many small singular values should not draw it away.
        members = jax.nn.one_hot(jnp.argmax(points @ means.T, axis=1), count)
        sums = (members * mass[:, None]).T @ points
        norms = jnp.linalg.norm(sums, axis=1, keepdims=True)
        return jnp.where(norms > 0, sums / jnp.maximum(norms, 1e-30), means)

    return points @ jax.lax.fori_loop(0, _ROUNDS, move, points[chosen]).T
