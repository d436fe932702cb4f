"""The objective: which components are active, by which attributions, and what is minimised.

Training, evaluation and reports all call the same three methods: `attribute`, `select`, `terms`.
How it is minimised (optimiser, precision) is in `training.config.Settings`.
Letters: B batch, T positions, C components.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from apd_jax import randomness, sites, validity
from apd_jax.attribution import METHODS, Attributed, Linearisation, Options, metrics
from apd_jax.components import Components
from apd_jax.config_fields import check_values, setting
from apd_jax.errors import UserError
from apd_jax.objective import gates, losses, selected, selection
from apd_jax.objective.coefficients import CONSTANT, Coefficients, Multipliers, Routes
from apd_jax.objective.distances import check_distance
from apd_jax.objective.partial import PartialMasks
from apd_jax.objective.selected import Selected
from apd_jax.objective.selection import Rule
from apd_jax.objective.terms import TERMS, Step
from apd_jax.programs.compiled import make_referable
from apd_jax.sites import PyTree, Target


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, and by which rule components are active."""

    coefficients: Coefficients = setting(
        Coefficients(minimality=1.0, simplicity=1.0), "Weights of the loss terms."
    )
    topk: float | None = setting(
        1.0, "k of the top-k selection; None for the pure Lp objective.", traced=True
    )
    selection: Rule = setting(
        "batch",
        "Top-k over the batch (floor(k·B) pairs), for every sample (k of them), or exact (as many "
        "pairs as there are active inputs; k is not used); or gates, learned functions of each "
        "component's attribution and reading, which start as top-k over the batch.",
    )
    per_position: bool = setting(
        False,
        "Choose components for every position of outputs [B, T, O], T of one axis or several, not "
        "every example.",
    )
    distil: bool = setting(False, "The last component is always active and not counted.")
    schatten_p: float = setting(0.9, "Power of the simplicity loss.", traced=True)
    simplicity_norm: Literal["schatten", "schatten_over_frobenius"] = setting(
        "schatten",
        "Norm in the simplicity loss: the paper's Schatten norm, or its ratio to the Frobenius "
        "norm, which does not change when a component shrinks.",
    )
    lp_p: float = setting(0.9, "Power of the attributions in the Lp losses.", traced=True)
    hidden_sites: tuple[str, ...] = setting(
        (), "Sites whose outputs the activation loss compares.", flag=False
    )
    hidden_uses: Literal["all", "first"] = setting(
        "all",
        "Uses of these sites that the activation loss compares: all, or the first of each (the "
        "last use of a tied decoder gives the network's output).",
    )
    hidden_activation: str = setting(
        "identity", "Nonlinearity that the activation loss applies first.", flag=False
    )
    minimality_loss: Any = setting(
        "mse",
        "Distance of the active components' output from the target's: mse, kl for networks with "
        "logits, or a Python function (outputs, target_outputs).",
    )
    attribution: str = setting("gradient", f"How components are scored: {', '.join(METHODS)}.")
    attribution_source: Linearisation = setting(
        "target",
        "Model that gradient attributions linearise: the target, or the sum of the components, "
        "which ablation and activation attributions always use.",
    )
    metric: Any = setting(
        "rms",
        "Function of the outputs that attributions measure: rms, fisher for logits, or a Python "
        "function of the outputs.",
    )
    valid: Any = setting(
        None,
        "Function of the batch that says which examples [B] or positions [B, T] count, as bool; "
        "None where all do.",
        flag=False,
    )
    masks: PartialMasks = setting(PartialMasks(), "Masks of the partial loss.", flat=True)
    routes: Routes = setting(Routes(), "Algorithms that compute it.", flat=True)

    def __post_init__(self):
        check_values(self)
        losses.activation_function(self.hidden_activation)
        metrics.check_metric(self.metric)
        validity.check(self.valid)
        check_distance(self.minimality_loss)
        make_referable(self, "metric", "valid", "minimality_loss")
        if self.attribution not in METHODS:
            known = sorted(METHODS)
            raise UserError(f"attribution must be one of {known}, got {self.attribution!r}")
        for name in ("schatten_p", "lp_p"):
            if not 0 < getattr(self, name) <= 2:
                raise UserError(f"{name} must be in (0, 2], got {getattr(self, name)}")
        gates.check(self)
        weights = self.coefficients
        if not self.selects:
            needing = [n for n in weights.used() if TERMS[n].selects]
            if needing:
                raise UserError(
                    f"coefficients {needing} need a top-k selection, but topk is None: set topk to "
                    "a number, or these coefficients to 0"
                )
        if weights.activation and not self.hidden_sites:
            raise UserError("the activation loss needs hidden_sites, got none: name the sites")

    @property
    def targeted(self) -> bool:
        """Whether the decomposition is targeted: components explain only `data`, not `other`."""
        return self.coefficients.other > 0

    @property
    def selects(self) -> bool:
        """Whether there is a top-k selection; without one all components are active."""
        return self.topk is not None or self.selection == "exact"

    def with_topk(self, k: float, **changes: Any) -> "Objective":
        """The same objective with another k; learned gates become batch-wide top-k of their scores.

        Args:
          k: active components per example.
          **changes: further fields, such as `selection="sample"` for k components on every example.
        """
        if self.selection == "gates":
            weights = dataclasses.replace(self.coefficients, l0=0.0)
            changes = {"selection": "batch", "coefficients": weights} | changes
        return dataclasses.replace(self, topk=k, **changes)

    def counted(self, x: PyTree) -> validity.Valid:
        """Which examples, bool [B], or positions, [B, T], of a batch count; None where all do."""
        return validity.of_batch(self.valid, x)

    def weight(self, x: PyTree) -> jax.Array:
        """How much a batch counts among others, scalar: its examples or positions that count."""
        valid = self.counted(x)
        return jnp.float32(sites.batch_size(x)) if valid is None else 1.0 * jnp.sum(valid)

    def num_rows(self, chosen: Selected, x: PyTree) -> int | jax.Array:
        """Rows of a selection on a batch that count: all of them, unless `valid` is set."""
        valid, lead = self.counted(x), chosen.mask.shape[:-1]
        return math.prod(lead) if valid is None else validity.number(validity.of_rows(valid, lead))

    def always_active(self, num_components: int) -> jax.Array:
        """[C] bool: True for the component that k does not count, if there is one."""
        return jnp.arange(num_components) >= num_components - self.distil

    def check_sizes(self, num_rows: int | None, num_components: int) -> None:
        """Raise UserError where k does not fit a batch and the number of components.

        Args:
          num_rows: examples, or positions of all examples together; None where their number is
            not known before the network is run.
          num_components: C.
        """
        selection.check_sizes(self.selection, self.topk, self.distil, num_rows, num_components)

    def attribute(
        self, target: Target, components: Components, x: PyTree, key: jax.Array | None = None
    ) -> Attributed:
        """Attributions of components, and the target's own pass over the same inputs.

        The scores of components with gates are those of the gates (`gates.Gated`).

        Args:
          target: the network.
          components: `{site: Factors}`; gradients flow to them through the scores.
          x: [B, ...] inputs.
          key: PRNG key for the sketch's random directions; without one they are the same at every
            call, which is what evaluation wants.
        """
        if isinstance(components, gates.Gated):
            return gates.opened(components, self.attribute(target, dict(components), x, key))
        found = METHODS[self.attribution](target, components, x, **self.attribution_options(x, key))
        if self.attribution_source == "target":
            return found

        # These scores come with a pass of the component model; losses compare with the target.
        return Attributed(found.scores, *self.own_pass(target, x))

    def attribution_options(self, x: PyTree, key: jax.Array | None = None) -> dict[str, Any]:
        """Keywords of an attribution method on a batch: options, key, what counts of the batch.

        Calls without a key are those outside training steps.
        """
        options = Options(
            self.routes.attribution_mode,
            self.attribution_source,
            self.metric,
            self.per_position,
            self.routes.probes(training=key is not None),
        )
        key = randomness.root(0) if key is None else key
        key = randomness.stream_of_step(key, "sketch directions")
        return {"options": options, "key": key, "valid": self.counted(x)}

    def own_pass(self, target: Target, x: PyTree) -> tuple[PyTree, sites.Records]:
        """The target's outputs, and the rows of every use of a site."""

        def run(inputs):
            return sites.run(target, inputs, sites.as_is, positions=self.per_position)

        return sites.over_examples(run, target, x)

    def select(self, scores: jax.Array, x: PyTree, multiplier: jax.Array | None = None) -> Selected:
        """Apply the selection rule to attributions.

        Args:
          scores: [B, C] or [B, T, C] attributions.
          x: [B, ...] inputs.
          multiplier: what k is multiplied by, in [0, 1] (`Multipliers.topk`); not for the exact
            rule.
        """
        rows = scores.reshape(-1, scores.shape[-1])
        valid, here, bad = self.counted(x), None, ~jnp.isfinite(rows)
        if valid is not None:
            here = validity.of_rows(valid, scores.shape[:-1]).reshape(-1)
            # Scores that are not finite are never selected: NaN takes the rows that do not count
            # out of every rule, without a rule of its own.
            rows, bad = jnp.where(here[:, None], rows, jnp.nan), bad & here[:, None]
        chosen = self._select_rows(rows, x, multiplier, valid, here)
        if here is not None:
            chosen = selected.only(chosen, here)
        nonfinite = jnp.sum(bad, dtype=jnp.int32)
        weights = None if chosen.weights is None else chosen.weights.reshape(scores.shape)
        mask = chosen.mask.reshape(scores.shape)
        return chosen._replace(mask=mask, nonfinite=nonfinite, weights=weights)

    def _select_rows(self, scores, x, multiplier, valid, here) -> Selected:
        if not self.selects:
            return Selected(jnp.ones(scores.shape, bool), None)
        if self.selection == "gates":
            return gates.choose(scores)
        counted = scores[:, :-1] if self.distil else scores
        chosen = selection.select_rows(
            self.selection, self.topk, counted, x, multiplier=multiplier, valid=valid, rows=here
        )
        return selected.add_always_active(chosen) if self.distil else chosen

    def terms(
        self,
        target: Target,
        components: Components,
        x: PyTree,
        key: jax.Array | None = None,
        multipliers: Multipliers = CONSTANT,
        chosen: Selected | None = None,
        other: PyTree = None,
        l0: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], Selected]:
        """Every loss term of nonzero coefficient before weighting, and what was selected.

        Args:
          target: the network.
          components: `{site: Factors}`; gradients flow through the terms to them.
          x: [B, ...] inputs.
          key: PRNG key for the sketch's directions and the random masks; see `attribute`.
          multipliers: those of this step; only k's matters here.
          chosen: the active components, where these were selected before.
          other: [B, ...] other data of a targeted decomposition; without them the term `other` is
            left out.
          l0: mean number of active components per row in the whole batch; None where that is x.
        """
        used = self.coefficients.used()
        wanted = [name for name in used if not (name == "other" and other is None)]
        flows = any(TERMS[name].flows for name in wanted)
        if self.selection == "gates":
            chosen = None  # the masks must have the gates' gradient
        if chosen is not None and not flows:
            attributed = Attributed(jnp.zeros(chosen.mask.shape), *self.own_pass(target, x))
        else:
            # The top-k selection is piecewise constant, and the paper lets no gradient flow through
            # its scores. Only the Lp losses are functions of the scores themselves.
            fixed = components if flows else gates.without_gradient(components)
            attributed = self.attribute(target, fixed, x, key)
        chosen = chosen or self.select(attributed.scores, x, multipliers.topk)
        step = Step(
            self, target, components, x, attributed, chosen, key, multipliers.topk, other, l0
        )
        return {name: TERMS[name].value(step) for name in wanted}, chosen

    def total(self, terms: dict[str, jax.Array], multipliers: Multipliers = CONSTANT) -> jax.Array:
        """The total loss, `Σ coefficient · multiplier · term`; multipliers default to 1."""
        weights, losses = self.coefficients.used(), multipliers.losses
        weighted = (weights[n] * losses.get(n, 1.0) * value for n, value in terms.items())
        return sum(weighted, jnp.float32(0))
