"""Split: a component that serves two mechanisms gives one of them to a free component.

Letters: R rows of the mask, C components, N examples in clusters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from apd_jax.components import Components, squared_norms
from apd_jax.training.initialisation.groups import SHARPNESS
from apd_jax.training.refine import shares
from apd_jax.training.refine.activity import Activity

EXAMPLES = 512
_ROUNDS = 10
_MINORITY = 0.15
_LEAST_EXAMPLES = 20


class Clusters(NamedTuple):
    """The two clusters of a component's examples.

    Attributes:
      cosine: cosine between the centres of the clusters, as sets of lines; 1 without two clusters.
      examples: int32 [N], numbers of the examples.
      weights: [N], how much the component does for each example, reduced between the clusters.
      second: [N], the weights of examples in the second cluster, 0 for those in the first.
    """

    cosine: jax.Array
    examples: jax.Array
    weights: jax.Array
    second: jax.Array


def two_clusters(directions: jax.Array, weights: jax.Array) -> Clusters:
    """Divide a component's examples into two clusters, by the lines on which its inputs lie.

    An input and its negative belong to one mechanism, so that examples are compared as lines: by
    k-means with the cosines of `x̂ x̂ᵀ`, whose inner products are the squared cosines of the inputs.
    Only these products are needed (kernel k-means), never the centres, which are d x d matrices.
    The iteration starts from the signs along the leading principal component.

    Args:
      directions: [R, d], inputs at unit norm.
      weights: [R], how much the component does for each example, not negative.
    """
    count = min(EXAMPLES, weights.size)
    # The examples that the component does most for: kernel k-means needs all their products, N x N.
    weights, examples = jax.lax.top_k(weights, count)
    products = jnp.square(directions[examples] @ directions[examples].T)
    first = _principal_signs(products, weights)

    # Cosine of each example to a cluster's centre `Σ_b w_b x̂_b x̂_bᵀ`, up to a factor that both
    # clusters share.
    def similarity(members):
        members = members * weights
        to_all = products @ members
        return to_all / jnp.sqrt(jnp.maximum(members @ to_all, 1e-30))

    def assign(_, members):
        return (similarity(members) >= similarity(1.0 - members)).astype(jnp.float32)

    members = jax.lax.fori_loop(0, _ROUNDS, assign, first)
    one, two = members * weights, (1 - members) * weights
    cross = one @ products @ two
    within = (one @ products @ one) * (two @ products @ two)
    counts = jnp.sum((weights > 0) * members), jnp.sum((weights > 0) * (1 - members))
    # A few examples, or a small minority, form a cluster by chance in a single mechanism too.
    enough = sum(counts) >= _LEAST_EXAMPLES
    minority = jnp.minimum(jnp.sum(one), jnp.sum(two)) / jnp.maximum(jnp.sum(weights), 1e-30)
    usable = enough & (minority >= _MINORITY) & (within > 0)
    cosine = jnp.where(usable, cross / jnp.sqrt(jnp.where(within > 0, within, 1)), 1.0)
    near, far = similarity(members), similarity(1 - members)
    clear = (jnp.abs(near - far) / jnp.maximum(near + far, 1e-30)) ** SHARPNESS
    return Clusters(cosine, examples, clear * weights, clear * two)


def _principal_signs(products: jax.Array, weights: jax.Array) -> jax.Array:
    """[N], 1 where the leading coordinate of kernel principal component analysis is positive."""
    # Centring in feature space needs only products: `(φ_a − μ)·(φ_b − μ)` with `μ = Σ_b share_b
    # φ_b`.
    share = weights / jnp.maximum(jnp.sum(weights), 1e-30)
    means = products @ share
    centred = products - means[:, None] - means + share @ means
    root = jnp.sqrt(share)
    centred = root[:, None] * centred * root

    def power(_, v):
        v = centred @ v
        return v / jnp.maximum(jnp.linalg.norm(v), 1e-30)

    start = centred[jnp.argmax(jnp.diagonal(centred))]
    leading = jax.lax.fori_loop(0, 30, power, start)
    return (leading > 0).astype(jnp.float32)


def hand_over(
    components: Components, activity: Activity, clusters: Clusters, c, d, store
) -> Components:
    """Give component `d` the part of `c` that reads the second cluster, at every site.

    What `d` held before goes to `store`, so that the sum of components stays the same.
    """

    def divided(factors, second, moment):
        factors = shares.add_into(factors, store, d)
        # Only U is divided, `P_c = Π P_c + (1 − Π) P_c`: both parts write as before what they read.
        taken = shares.partition(second)(moment, factors.reads[c])
        return factors._replace(
            reads=factors.reads.at[d].set(taken).at[c].add(-taken),
            writes=factors.writes.at[d].set(factors.writes[c]),
        )

    nothing = jnp.zeros(len(activity.weights))
    weights = [nothing.at[clusters.examples].set(w) for w in (clusters.weights, clusters.second)]
    return shares.each_site(divided, components, *activity.moments(*weights))


def split(
    parts: Components,
    activity: Activity,
    free: jax.Array,
    *,
    cosine: float,
    limit: int,
) -> tuple[Components, jax.Array, jax.Array]:
    """Split components whose examples fall into two clusters, the clearest first.

    Args:
      parts: `{site: Factors}`.
      activity: what the components do on a batch.
      free: [C] bool, components that may be used.
      cosine: a component is split if the cosine between its clusters is below this threshold.
      limit: largest number of splits.

    Returns:
      The components, the number of splits, and [C] bool, the components that were touched.
    """
    clusters = jax.lax.map(
        lambda weights: two_clusters(activity.directions, weights), activity.weights.T
    )

    def more(carry):
        _, cosines, free, _, count = carry
        return (count < limit) & (jnp.min(cosines) < cosine) & jnp.any(free)

    def one(carry):
        parts, cosines, free, touched, count = carry
        c = jnp.argmin(cosines)
        d, store = choose_free(parts, free, c)
        of_c = jax.tree.map(lambda leaf: leaf[c], clusters)
        parts = hand_over(parts, activity, of_c, c, d, store)
        touched = touched.at[jnp.stack([c, d, store])].set(True)
        # A component is split once in a round: its clusters were measured before the split.
        return parts, cosines.at[c].set(1.0), free.at[d].set(False), touched, count + 1

    # Free components have no examples worth dividing, and are what the others are split into.
    cosines = jnp.where(free, 1.0, clusters.cosine)
    start = parts, cosines, free, jnp.zeros_like(free), jnp.int32(0)
    parts, _, _, touched, count = jax.lax.while_loop(more, one, start)
    return parts, count, touched


def choose_free(components: Components, free: jax.Array, otherwise) -> tuple[jax.Array, jax.Array]:
    """Choose the smallest free component, and the largest of the other ones (or `otherwise`).

    The smallest is used, since what it holds has to move. That goes to the largest: truncated to
    rank m, a large component loses less by it than a small one would.
    """
    norms = squared_norms(components)
    smallest = jnp.argmin(jnp.where(free, norms, jnp.inf))
    others = free.at[smallest].set(False)
    largest = jnp.argmax(jnp.where(others, norms, -jnp.inf))
    return smallest, jnp.where(jnp.any(others), largest, otherwise)
