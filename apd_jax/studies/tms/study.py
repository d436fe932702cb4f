"""Toy models of superposition (section 3.1 of the paper; the +ID variants are SPD's)."""

import jax
import ml_collections

from apd_jax.decomposition import Decomposition
from apd_jax.errors import UserError
from apd_jax.inputs import SparseFeatures
from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies.tms.captions import CAPTIONS
from apd_jax.studies.tms.figures import tms_figures
from apd_jax.studies.tms.measures import TMSArrays, evaluate_tms
from apd_jax.studies.tms.network import TMS, TMSTask
from apd_jax.studies.verdicts import Published, Threshold

MAIN_FIGURE = "components"
_MMCS = "mean over features of the largest cosine between a component's row and the target's"
_ML2R = "mean over features of the norm of the best component's row over the target's"
_VALUES = {
    "5-2": (("0.998 ± 0.000", "0.893 ± 0.004"), ("1.000", "0.993 ± 0.002")),
    "40-10": (("0.996 ± 0.003", "0.935 ± 0.001"), ("1.000", "1.010 ± 0.007")),
    "5-2-id": ((None, None), ("1.000", "0.992 ± 0.010")),
    "40-10-id": ((None, None), ("1.000", "1.031 ± 0.001")),
}


def published(variant: str) -> list[Published]:
    """Numbers of the paper and of SPD for a variant.

    Raises:
      UserError: an unknown variant.
    """
    if variant not in _VALUES:
        raise UserError(f"variant must be one of {sorted(_VALUES)}, got {variant!r}")
    paper, spd = _VALUES[variant]
    return [
        Published("mmcs", "MMCS", paper[0], spd[0], _MMCS),
        Published("ml2r", "ML2R", paper[1], spd[1], _ML2R),
    ]


def thresholds(variant: str) -> list[Threshold]:
    """What a good decomposition reaches."""
    return [
        Threshold("mmcs_mean", ">=", 0.99, "Components point along the features (MMCS)"),
        Threshold("ml2r_mean", ">=", 0.85, "Components have the features' length (ML2R)"),
        Threshold("solve_rate", ">=", 1.0, "Every seed has each feature in its own component"),
    ]


def make_task(config: ml_collections.FrozenConfigDict) -> TMSTask:
    """The network and its inputs.

    Raises:
      UserError: a field out of its range.
    """
    target = config.target
    for name, least in (("num_features", 1), ("num_hidden", 1), ("hidden_layers", 0)):
        if target[name] < least:
            raise UserError(f"target.{name} must be at least {least}, got {target[name]}")
    inputs = SparseFeatures(
        num_features=target.num_features,
        probability=target.probability,
        value_range=(0.0, 1.0),
        mode=target.input_mode,
        num_active=target.num_active,
        synced=tuple(map(tuple, target.synced)),
    )
    module = TMS(target.num_features, target.num_hidden, target.hidden_layers)
    return TMSTask(module, inputs, target.hidden_kind)


def evaluate(task: TMSTask, decomposition: Decomposition, attributions, key: jax.Array, samples):
    """Numbers of results.json, and arrays for the figures."""
    settings = decomposition.settings
    return evaluate_tms(
        decomposition.target,
        decomposition.components,
        key=key,
        objective=settings.objective,
        distribution=task.inputs,
        batch_size=settings.batch_size,
        num_samples=samples,
        attributions=attributions,
    )


def draw(numbers, arrays: TMSArrays, only: str | None = None):
    """Figures by name; one of them alone if `only` is given."""
    return tms_figures(arrays, only=only)


def represented(arrays: TMSArrays) -> list[list[int]]:
    """For every component, the features that it recovers."""
    lists: list[list[int]] = [[] for _ in range(arrays.components.shape[0])]
    for feature, component in enumerate(arrays.best_component):
        if arrays.recovered[feature]:
            lists[int(component)].append(feature)
    return lists


def views(target: Target) -> dict[str, View]:
    """How the browser shows each site."""
    hidden = {site: View("hidden", "hidden") for site in target.sites if site != "linear1"}
    return {"linear1": View("feature", "hidden"), **hidden}


__all__ = [
    "CAPTIONS",
    "MAIN_FIGURE",
    "draw",
    "evaluate",
    "make_task",
    "published",
    "represented",
    "thresholds",
    "views",
]
