"""What a decomposition minimises, and by which rule components are active.

Letters: B batch, C components.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from apd_jax import attributions, forward, losses, selection
from apd_jax.components import Components, Projection
from apd_jax.errors import UserError
from apd_jax.fields import check_choices, setting
from apd_jax.selection import Selected
from apd_jax.sites import Target


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Weights of the loss terms; a term of weight 0 is not computed. None may be negative."""

    faithfulness: float = setting(1.0, "The components add up to the target's weights.")
    minimality: float = setting(0.0, "Active components alone give the target's output.")
    simplicity: float = setting(0.0, "Active components have a low Schatten norm.")
    activation: float = setting(0.0, "Active components alone give its hidden activations.")
    output: float = setting(0.0, "All components together give the target's output.")
    lp_minimality: float = setting(0.0, "Attributions have a low Lp norm.")
    lp_simplicity: float = setting(0.0, "Schatten norm of components, weighted by attributions.")

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise UserError(f"coefficient {name} must not be negative, got {value}")


@dataclasses.dataclass(frozen=True)
class Routes:
    """By which of several exact routes an objective is computed: every choice gives the same."""

    attribution_mode: attributions.Mode = setting(
        "auto", "Route of the attributions: forward, reverse, literal, or auto (the cheapest)."
    )
    masked_route: forward.MaskedRoute = setting(
        "auto",
        "Masked pass: grouped computes only the active pairs, dense all of them, auto picks by "
        "size.",
    )
    projection: Projection = setting(
        "auto",
        "Projection of the gradient of unit-norm U: literal sums over d_in, auto over the narrower "
        "side.",
    )
    matmul_precision: Literal["highest", "high", "default"] = setting(
        "highest",
        "Matrix products of a step, on GPU and TPU; attributions and faithfulness stay at highest.",
    )

    def __post_init__(self):
        check_choices(self)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, and by which rule components are active."""

    coefficients: Coefficients = setting(
        Coefficients(minimality=1.0, simplicity=1.0), "Weights of the loss terms."
    )
    topk: float | None = setting(1.0, "k of the top-k selection; None for the pure Lp objective.")
    selection: Literal["batch", "sample", "exact"] = setting(
        "batch",
        "Top-k over the batch (floor(k·B) pairs), for every sample (k of them), or exact (as many "
        "pairs as there are active inputs; k is not used).",
    )
    distil: bool = setting(False, "The last component is always active and not counted.")
    schatten_p: float = setting(0.9, "Power of the simplicity loss.")
    lp_p: float = setting(0.9, "Power of the attributions in the Lp losses.")
    hidden_sites: tuple[str, ...] = setting(
        (), "Sites whose outputs the activation loss compares.", flag=False
    )
    hidden_activation: str = setting(
        "identity", "Nonlinearity that the activation loss applies first.", flag=False
    )
    output_loss: Literal["mse", "kl"] = setting(
        "mse", "Distance of outputs: mse, or kl for networks with logits.", flag=False
    )
    attribution_source: attributions.Source = setting(
        "target", "Which model attributions linearise: the target, or the sum of the components."
    )
    unit_norm: bool = setting(False, "Keep the columns of U at unit norm.")
    routes: Routes = setting(Routes(), "How it is computed.", flat=True)

    def __post_init__(self):
        check_choices(self)
        losses.activation_function(self.hidden_activation)
        for name in ("schatten_p", "lp_p"):
            if not 0 < getattr(self, name) <= 2:
                raise UserError(f"{name} must be in (0, 2], got {getattr(self, name)}")
        weights = self.coefficients
        if not self.selects:
            needing = [n for n in ("minimality", "simplicity", "activation") if getattr(weights, n)]
            if needing:
                raise UserError(f"coefficients {needing} need a top-k selection; topk is None")
        if weights.activation and not self.hidden_sites:
            raise UserError("the activation loss needs hidden_sites, got none")

    @property
    def selects(self) -> bool:
        """Whether there is a top-k selection; without one all components are active."""
        return self.topk is not None or self.selection == "exact"

    @property
    def sphere_projection(self) -> Projection | None:
        """How gradients are projected; None where U may have any norm."""
        return self.routes.projection if self.unit_norm else None

    def per_row(self, k: int) -> "Objective":
        """The same with the k components of largest attribution on every example."""
        return dataclasses.replace(self, selection="sample", topk=k)

    def always_active(self, num_components: int) -> jax.Array:
        """[C] bool: true for the component that k does not count, if there is one."""
        return jnp.arange(num_components) >= num_components - self.distil

    def check_sizes(self, batch_size: int, num_components: int) -> None:
        """Raise UserError where k does not fit the batch and the number of components."""
        candidates = num_components - self.distil
        if self.selection == "batch" and self.topk is not None:
            selection.num_active(self.topk, batch_size, candidates)
        if self.selection == "sample" and self.topk is not None:
            selection.check_topk(self.topk, candidates)

    def attribute(self, target: Target, components: Components, x: jax.Array) -> jax.Array:
        """Attributions [B, C] of inputs x [B, ...], by the rule of the training."""
        return attributions.gradient_attributions(
            target,
            components,
            x,
            mode=self.routes.attribution_mode,
            source=self.attribution_source,
        )

    def select(self, scores: jax.Array, x: jax.Array) -> Selected:
        """Apply the selection rule to attributions [B, C] of inputs x [B, ...]."""
        if not self.selects:
            return Selected(jnp.ones(scores.shape, bool), None)
        counted = scores[:, :-1] if self.distil else scores
        if self.selection == "exact":
            chosen = Selected(selection.exact_topk_mask(counted, x), None)
        else:
            assert self.topk is not None
            rule = selection.batch_topk if self.selection == "batch" else selection.sample_topk
            chosen = rule(counted, self.topk)
        return selection.add_always_active(chosen) if self.distil else chosen
