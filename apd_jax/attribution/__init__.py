"""Attributions: how much every component matters on every example.

`METHODS` is the table of methods that an objective can name. `gradient` implements the paper's
method by several `routes`; `metrics` measure changes of the outputs; `removal` holds the methods
that need no derivatives.
"""

from collections.abc import Callable, Mapping

import jax

from apd_jax import sites, validity
from apd_jax.attribution import gradient
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.gradient import gradient_attributions
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.options import DEFAULT, Linearisation, Options
from apd_jax.attribution.removal import ablation_attributions, activation_attributions
from apd_jax.attribution.routes import Mode
from apd_jax.attribution.terms import Terms, site_by_site, term_attributions
from apd_jax.errors import UserError
from apd_jax.sites import PyTree, Target
from apd_jax.validity import Valid

INTEGRATION_STEPS = 8


def _integrated(target, components, x, options=DEFAULT, **given) -> Attributed:
    options = options._replace(integration_steps=INTEGRATION_STEPS)
    return gradient.attribute(target, components, x, options, **given)


def _without_derivatives(function: Callable, *, of_metric: bool = False) -> Callable:
    """Make a method of a function that runs the component model, whatever the linearisation."""

    def attribute(target, components, x, options=DEFAULT, *, key=None, valid=None) -> Attributed:
        del key  # nothing is random
        metric = options.metric
        if metric != "rms" and not of_metric:
            raise UserError(f"{function.__name__} has no metric but 'rms', got {metric!r}")
        if options.per_position:
            raise UserError(
                f"{function.__name__} has no scores per position, got per_position=True: set "
                "attribution='gradient', or leave per_position out"
            )

        def some(inputs):
            return sites.run(target, inputs, sites.as_is)

        measured = {"metric": metric} if of_metric else {}
        measured |= {} if valid is None else {"valid": valid}
        scores = function(target, jax.lax.stop_gradient(components), x, **measured)
        scores = validity.of_scores(valid, scores)
        return Attributed(scores, *sites.over_examples(some, target, x))

    return attribute


def attribute_terms(
    name: str,
    target: Target,
    kinds: Mapping[str, Terms],
    x: PyTree,
    options: Options = DEFAULT,
    *,
    key: jax.Array | None = None,
    valid: Valid = None,
) -> dict[str, jax.Array]:
    """Attributions `{kind: [B, (T), Q]}` of terms that belong to one site each, by a method.

    Args:
      name: the method.
      target: the network.
      kinds: `{kind: {site: terms}}`; the terms of a kind add up to the network.
      x, key, valid: see `gradient_attributions`.
      options: how attributions are computed; always those of the target.
    """
    options = options._replace(source="target")
    steps = {"gradient": 1, "integrated_gradients": INTEGRATION_STEPS}.get(name)
    if steps is None:
        return site_by_site(METHODS[name], target, kinds, x, options, key=key, valid=valid)
    options = options._replace(integration_steps=steps)
    return term_attributions(target, kinds, x, options, key=key, valid=valid)


# Name -> `(target, components, x, options, *, key, valid) -> Attributed`.
METHODS: dict[str, Callable[..., Attributed]] = {
    "gradient": gradient.attribute,
    "integrated_gradients": _integrated,
    "ablation": _without_derivatives(ablation_attributions, of_metric=True),
    "activation": _without_derivatives(activation_attributions),
}
