"""The losses of the Lp objective, whose gradient flows through the attributions.

Letters: B batch, C components, m rank, N number of decomposed weights, p power.
"""

import jax
import jax.numpy as jnp

from apd_jax import validity
from apd_jax.components import Components
from apd_jax.objective import losses
from apd_jax.programs.axes import spread


def lp_weights(scores: jax.Array, *, p: float) -> jax.Array:
    """`(A_c² + ε)^{p/2}`, the soft masks of the Lp objective, [B, C]."""
    return (jnp.square(scores) + losses.EPSILON) ** (p / 2)


def lp_minimality(scores: jax.Array, *, p: float, rows: jax.Array | None = None) -> jax.Array:
    """`mean_b Σ_c (A_c² + ε)^{p/2}` of attributions [B, C]; their gradient flows.

    The mean is over the examples where `rows`, bool [B], is True.
    """
    return validity.mean(jnp.sum(lp_weights(scores, p=p), axis=-1), rows)


def lp_simplicity(
    components: Components,
    scores: jax.Array,
    *,
    p: float,
    schatten_p: float,
    uses: dict[str, float],
    rows: jax.Array | None = None,
) -> jax.Array:
    """Schatten norms weighted by attributions.

    `(1/(N·B)) Σ_b Σ_c Σ_l Σ_m (w_c(x_b) ‖U_{c,l,:,m}‖² ‖V_{c,l,m,:}‖² + ε)^{schatten_p/2}` with
    `w_c = (A_c² + ε)^{p/2}`.

    Args:
      components: `{site: Factors}`.
      scores: [B, C] attributions; their gradient flows.
      p: power of the attributions.
      schatten_p: Schatten power.
      uses: number of uses of each site in a pass.
      rows: [B] bool, the examples that count; None for all.
    """
    weights = lp_weights(scores, p=p)

    def term(norms):
        weighted = spread(weights, 1 + norms.ndim) * norms
        each = (weighted + losses.EPSILON) ** (schatten_p / 2)
        return jnp.sum(each if rows is None else each * spread(rows, each.ndim))

    terms = (uses[site] * term(norms) for site, norms in losses.rank_one_norms(components).items())
    count = scores.shape[0] if rows is None else validity.number(rows)
    return losses.total_of(terms) / (losses.num_weights(components, uses) * count)
