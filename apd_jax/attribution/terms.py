"""Attributions of terms that belong to one site each, as singular vectors and columns do.

A component that has nothing at the other sites is scored by its own site's rows alone, so that one
pull back through the network serves all terms of all sites: no zeros are multiplied, and terms of
several kinds share it.
Letters: B batch, T positions, L rows (B examples, or B·T positions of them), q terms of a site,
Q of all sites.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import validity
from apd_jax.attribution import directions, routes
from apd_jax.attribution.attributed import Attributed
from apd_jax.attribution.directions import Batch
from apd_jax.attribution.options import DEFAULT, Options
from apd_jax.attribution.routes import Linearised
from apd_jax.components import Factors
from apd_jax.masked.columns import Columns
from apd_jax.sites import PyTree, SiteRecord, Target
from apd_jax.validity import Valid

Terms = Mapping[str, Factors | Columns]


def term_attributions(
    target: Target,
    kinds: Mapping[str, Terms],
    x: PyTree,
    options: Options = DEFAULT,
    *,
    key: jax.Array | None = None,
    valid: Valid = None,
) -> dict[str, jax.Array]:
    """Gradient attributions at θ* of terms that belong to one site each.

    Exact, by pulling back all directions of the metric, but for `mode="sketch"`.

    Args:
      target: the network.
      kinds: `{kind: {site: terms}}`, of all sites in the order of the target's.
      x, key, valid: see `gradient_attributions`.
      options: how derivatives are taken.

    Returns:
      `{kind: [B, (T), Q]}`, terms in the order of their sites.
    """
    if options.mode != "sketch":
        options = options._replace(mode="reverse")
    largest = max(one.num_components for terms in kinds.values() for one in terms.values())

    def scores(batch: Batch) -> dict[str, jax.Array]:
        at = routes.linearise(target, batch.x, options.metric, options.per_position, batch.valid)
        at = at._replace(outputs=validity.keep(batch.valid, at.outputs))
        squares = directions.squares(
            options, target, at, batch, lambda at, some: _along(at, kinds, some)
        )
        return {
            kind: routes.in_rows(at, jnp.sqrt(jnp.concatenate(parts)))
            for kind, parts in squares.items()
        }

    found = directions.over_batch(options, target, largest, x, key, valid, scores)
    return {kind: validity.of_scores(valid, one) for kind, one in found.items()}


def site_by_site(
    method: Callable[..., Attributed],
    target: Target,
    kinds: Mapping[str, Terms],
    x: PyTree,
    options: Options = DEFAULT,
    *,
    key: jax.Array | None = None,
    valid: Valid = None,
) -> dict[str, jax.Array]:
    """Attributions of terms by any method: the network is decomposed at one site after another."""

    def of_site(site: str, terms: Factors | Columns) -> jax.Array:
        factors = terms.factors() if isinstance(terms, Columns) else terms
        return method(
            target.at_one_site(site), {site: factors}, x, options, key=key, valid=valid
        ).scores

    return {
        kind: jnp.concatenate([of_site(site, one) for site, one in terms.items()], axis=-1)
        for kind, terms in kinds.items()
    }


def _along(
    at: Linearised, kinds: Mapping[str, Terms], some: jax.Array
) -> dict[str, list[jax.Array]]:
    """Derivatives [n, L, q] of every site's terms in directions [n, B, O]."""
    gradients = routes.pull_back(at, some)

    def of_site(site: str, terms: Factors | Columns) -> jax.Array:
        parts = [
            _at_use(terms, gradients[key], record, at.lead)
            for key, record in at.records.items()
            if record.name == site
        ]
        return sum(parts[1:], parts[0])

    return {
        kind: [of_site(site, one) for site, one in terms.items()] for kind, terms in kinds.items()
    }


def _at_use(terms: Factors | Columns, gradient: jax.Array, record: SiteRecord, lead: int) -> Any:
    if isinstance(terms, Columns):
        return terms.along(gradient, record, lead)
    return routes.contract(lead, gradient, record, terms.placed(record.placement))
