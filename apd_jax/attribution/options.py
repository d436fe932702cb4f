"""The choices that attributions are computed by, as one record that the methods share."""

from typing import Any, Literal, NamedTuple, get_args

from apd_jax.attribution import metrics
from apd_jax.attribution.metrics import Metric
from apd_jax.attribution.routes import Mode
from apd_jax.config_fields.values import KINDS, number
from apd_jax.errors import UserError
from apd_jax.programs.jax_settings import check_key

# The network at whose parameters derivatives are taken: `f(x, θ*)` or `f(x, Σ_c P_c)`.
Linearisation = Literal["target", "components"]


class Options(NamedTuple):
    """How attributions are computed; a method refuses or ignores what does not apply to it.

    Attributes:
      mode: algorithm of the derivatives.
      source: network to linearise.
      metric: measure of the change of the outputs.
      per_position: whether every position gets a score.
      num_probes: number of random directions of the sketch.
      integration_steps: number of points `t·θ*`, t in (0, 1], over which derivatives are averaged.
    """

    mode: Mode = "auto"
    source: Linearisation = "target"
    metric: Metric = "rms"
    per_position: bool = False
    num_probes: int | None = None
    integration_steps: int = 1

    def check(self, key: Any) -> None:
        """Raise UserError for unknown names, and for choices that exclude each other.

        Args:
          key: the PRNG key that attributions are computed with, which the sketch needs.
        """
        for name, value, known in (
            ("mode", self.mode, Mode),
            ("source", self.source, Linearisation),
        ):
            if value not in get_args(known):
                raise UserError(f"{name} must be one of {get_args(known)}, got {value!r}")
        metrics.check_metric(self.metric)
        if key is not None:
            check_key(key)
        if self.num_probes is not None and not KINDS[int](number(self.num_probes)):
            raise UserError(f"num_probes must be a whole number or None, got {self.num_probes!r}")
        if self.mode == "sketch" and key is None:
            raise UserError("mode 'sketch' needs a PRNG key for its directions, got key=None")
        if self.mode == "sketch" and (self.num_probes is None or self.num_probes < 1):
            raise UserError(f"mode 'sketch' needs num_probes of at least 1, got {self.num_probes}")
        if self.per_position and self.mode == "forward":
            raise UserError("forward mode has no scores per position; use 'reverse' or 'sketch'")


DEFAULT = Options()
