"""Attributions without derivatives: by ablation of a component, and by what it writes.

Letters: B batch, C components, O outputs, l uses of sites.
"""

import jax
import jax.numpy as jnp

from apd_jax import sites, validity
from apd_jax.attribution.metrics import Metric, check_metric, quantities, squared
from apd_jax.components import Components, check_given
from apd_jax.masked import forward
from apd_jax.programs.axes import spread
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid


def ablation_attributions(
    target: Target,
    components: Components,
    x: PyTree,
    metric: Metric = "rms",
    valid: Valid = None,
) -> jax.Array:
    """Squared change of the output when one component is removed.

    With the metric `"rms"`, `(1/O) Σ_o ( f_o(x, Σ_j P_j) − f_o(x, Σ_{j≠c} P_j) )²`, one pass per
    component. Where both outputs are the same infinity, as for logits of excluded classes, the
    change is 0.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      metric, valid: measure of the change of the outputs, and which of them count; see
        `gradient_attributions`.

    Returns:
      [B, C].

    Raises:
      UserError: components that do not fit the target's sites, an unknown metric.
    """
    check_metric(metric)
    x = check_given(target, components, x)
    valid = validity.as_given(valid, x)
    sums = {name: factors.sum() for name, factors in components.items()}
    outputs = target.with_weights(sums)(x)
    full = quantities(metric, outputs, sites.batch_size(x), valid)
    kept = validity.keep(valid, outputs)

    # One component at a time: the ablated matrices of all of them would be C copies of the network.
    def without(one: Components) -> jax.Array:
        matrices = {
            name: jnp.einsum("...mi,...mo->...io", factors.reads, factors.writes)
            for name, factors in one.items()
        }
        removed = {name: sums[name] - matrix for name, matrix in matrices.items()}
        ablated = quantities(metric, target.with_weights(removed)(x), sites.batch_size(x), valid)
        change = jnp.where(full == ablated, 0.0, full - ablated)
        return squared(metric, kept, change.T[None])[0]

    return jax.lax.map(without, components).T


def activation_attributions(
    target: Target, components: Components, x: PyTree, valid: Valid = None
) -> jax.Array:
    """Squared norm of what every component writes in the full component model.

    `Σ_l ‖x_l P_{c,l}‖²`, summed over all uses of sites, with x_l from the pass of all components.

    Args:
      target: the network.
      components: `{site: Factors}` with C components.
      x: [B, ...] inputs.
      valid: bool [B] or [B, T], which rows of the sites count; None for all.

    Returns:
      [B, C].

    Raises:
      UserError: components that do not fit the target's sites, rows without the positions that
        `valid` has.
    """
    x = check_given(target, components, x)
    valid = validity.as_given(valid, x)
    full = forward.full_model(target, components)

    def some(inputs, valid):
        _, records = sites.run(full, inputs, sites.as_is)
        total = 0.0
        for record in records.values():
            factors = components[record.name].placed(record.placement)
            written = forward.write_each(forward.read_all(record.x, factors), factors)
            if valid is not None:
                rows = record.y.shape[: record.y.ndim - 1 - factors.stacked]
                counted = validity.of_site_rows(valid, rows, record.name)
                written = jnp.where(spread(counted, written.ndim), written, 0.0)
            squares = jnp.square(jnp.moveaxis(written, -2, 1))  # [B, C, ...]
            total += squares.reshape(*squares.shape[:2], -1).sum(axis=-1)
        return total

    return sites.over_examples(some, target, x, valid)
