"""Attributions: how much every component matters on every example.

`METHODS` is the table of methods that an objective can name. `gradient` implements the paper's
method by several `routes`; `metrics` measure changes of the outputs; `removal` holds the methods
that need no derivatives.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from apd_jax import sites, validity
from apd_jax.attribution import gradient
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.gradient import Linearisation, gradient_attributions
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.removal import ablation_attributions, activation_attributions
from apd_jax.attribution.routes import Mode
from apd_jax.attribution.terms import Terms, site_by_site, term_attributions
from apd_jax.errors import UserError
from apd_jax.sites import PyTree, Target

INTEGRATION_STEPS = 8


def _integrated(target, components, x, **options) -> Attributed:
    return gradient.attribute(target, components, x, integration_steps=INTEGRATION_STEPS, **options)


def _without_derivatives(function: Callable, *, of_metric: bool = False) -> Callable:
    """Make a method of a function that runs the component model, whatever the linearisation."""

    def attribute(
        target, components, x, *, per_position=False, metric="rms", valid=None, **_
    ) -> Attributed:
        if metric != "rms" and not of_metric:
            raise UserError(f"{function.__name__} has no metric but 'rms', got {metric!r}")
        if per_position:
            raise UserError(
                f"{function.__name__} has no scores per position; use gradient attributions"
            )

        def some(inputs):
            outputs, records = sites.run(target, inputs, sites.as_is)
            return outputs, records

        measured = {"metric": metric} if of_metric else {}
        measured |= {} if valid is None else {"valid": valid}
        scores = function(target, jax.lax.stop_gradient(components), x, **measured)
        scores = validity.of_scores(valid, scores)
        return Attributed(scores, *sites.over_examples(some, target, x))

    return attribute


def attribute_terms(
    name: str, target: Target, kinds: Mapping[str, Terms], x: PyTree, **options: Any
) -> dict[str, jax.Array]:
    """Attributions `{kind: [B, (T), Q]}` of terms that belong to one site each, by a method.

    Args:
      name: the method.
      target: the network.
      kinds: `{kind: {site: terms}}`; the terms of a kind add up to the network.
      x: [B, ...] inputs.
      **options: see `gradient_attributions`.
    """
    steps = {"gradient": 1, "integrated_gradients": INTEGRATION_STEPS}.get(name)
    if steps is not None:
        return term_attributions(target, kinds, x, integration_steps=steps, **options)
    return site_by_site(METHODS[name], target, kinds, x, **options)


# Name -> `(target, components, x, **options of gradient_attributions) -> Attributed`.
METHODS: dict[str, Callable[..., Attributed]] = {
    "gradient": gradient.attribute,
    "integrated_gradients": _integrated,
    "ablation": _without_derivatives(ablation_attributions, of_metric=True),
    "activation": _without_derivatives(activation_attributions),
}

__all__ = [
    "METHODS",
    "Attributed",
    "Linearisation",
    "Metric",
    "Mode",
    "ablation_attributions",
    "activation_attributions",
    "attribute_terms",
    "gradient_attributions",
]
