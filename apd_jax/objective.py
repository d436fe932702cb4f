"""What a decomposition minimises, and by which rule components are active.

Letters: B batch, C components.
"""

import dataclasses
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp

from apd_jax import attributions, forward, losses, selection
from apd_jax.components import Projection
from apd_jax.errors import UserError
from apd_jax.selection import Selected


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Weights of the loss terms; a term of weight 0 is not computed. None may be negative."""

    faithfulness: float = 1.0
    minimality: float = 0.0
    simplicity: float = 0.0
    activation: float = 0.0
    output: float = 0.0
    lp_minimality: float = 0.0
    lp_simplicity: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise UserError(f"coefficient {name} must not be negative, got {value}")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, and by which of several exact routes it is computed.

    Attributes:
      coefficients: weights of the loss terms.
      topk: k of the top-k selection; None for the pure Lp objective.
      selection: `"batch"` (floor(k·B) pairs in the batch), `"sample"` (k for every example) or
        `"exact"` (as many pairs as there are active inputs; k is not used).
      distil: the last component is always active and not counted.
      schatten_p: power of the simplicity loss.
      lp_p: power of the attributions in the Lp losses.
      hidden_sites: sites whose outputs the activation loss compares.
      hidden_activation: nonlinearity applied to them first.
      output_loss: `"mse"`, or `"kl"` for networks with logits.
      attribution_source: linearise the `"target"` or the `"components"` model.
      unit_norm: keep the columns of U at unit norm.
      attribution_mode: route of the attributions (`attributions.gradient_attributions`).
      projection: how the gradient of unit-norm U is projected (`components.project_gradient`).
      masked_route: `"grouped"` computes only the active pairs, `"dense"` all of them, `"auto"`
        picks by size (`forward.choose_masked_route`).
      matmul_precision: of the whole step. Anything below `"highest"` (float32) lets GPUs and TPUs
        use their shorter formats, except for attributions and faithfulness; CPUs know no other.
    """

    coefficients: Coefficients
    topk: float | None
    selection: Literal["batch", "sample", "exact"] = "batch"
    distil: bool = False
    schatten_p: float = 0.9
    lp_p: float = 0.9
    hidden_sites: tuple[str, ...] = ()
    hidden_activation: str = "identity"
    output_loss: Literal["mse", "kl"] = "mse"
    attribution_source: attributions.Source = "target"
    unit_norm: bool = False
    attribution_mode: attributions.Mode = "auto"
    masked_route: forward.MaskedRoute = "auto"
    projection: Projection = "auto"
    matmul_precision: Literal["highest", "high", "default"] = "highest"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            allowed, value = get_args(field.type), getattr(self, field.name)
            if get_origin(field.type) is Literal and value not in allowed:
                raise UserError(f"{field.name} must be one of {allowed}, got {value!r}")
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
        return self.projection if self.unit_norm else None

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
