"""Columns of U at unit norm (an option of the paper): components, gradient and updates."""

from typing import Literal

import jax.numpy as jnp
import optax

from apd_jax.components import Components, Factors

Projection = Literal["auto", "literal"]


def normalise_reads(components: Components) -> Components:
    """Scale every column of every `U_c` to unit norm over d_in (the paper's unit-norm option)."""
    return {
        site: factors._replace(
            reads=factors.reads / jnp.linalg.norm(factors.reads, axis=-1, keepdims=True)
        )
        for site, factors in components.items()
    }


def project_gradient(
    gradient: Components, components: Components, mode: Projection = "auto"
) -> Components:
    """Remove from the gradient of unit-norm `U` its part along `U`: `g − (g·u) u` per column.

    A loss that depends on a column u of U and its row v of V only through their product `u vᵀ`
    stays the same when u is scaled up and v down, so that `g_u·u = g_v·v`: the sum can run over the
    narrower of the two. All loss terms of APD are of that kind. A test compares both sums for each
    term; a term of another kind (a penalty on U alone, say) fails it and needs `"literal"`.

    Args:
      gradient: gradient of such a loss, `{site: Factors}`.
      components: the components at which it was taken, U at unit norm.
      mode: `"auto"` sums over the narrower side, `"literal"` over d_in.
    """

    def project(g: Factors, p: Factors) -> Factors:
        narrow = p.writes.shape[-1] < p.reads.shape[-1]
        g_side, p_side = (g.writes, p.writes) if mode == "auto" and narrow else (g.reads, p.reads)
        along = jnp.sum(g_side * p_side, axis=-1, keepdims=True)
        return g._replace(reads=g.reads - along * p.reads)

    return {site: project(gradient[site], components[site]) for site in components}


def keep_unit_norm(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep the columns of U at unit norm, which they must have from the start (paper's option).

    Updates are changed to end on the unit sphere, at `(U + update) / ‖U + update‖`. The gradient
    should have no component along U (`project_gradient`).
    """

    def update(gradient, state, components=None):
        updates, state = inner.update(gradient, state, components)
        arrived = normalise_reads(optax.apply_updates(components, updates))
        on_sphere = {
            site: update._replace(reads=arrived[site].reads - components[site].reads)
            for site, update in updates.items()
        }
        return on_sphere, state

    return optax.GradientTransformation(inner.init, update)
