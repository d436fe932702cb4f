"""A decomposed network: its components, what they do, and how to save it.

Letters: B batch, N examples, T positions, C components, O outputs.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components
from apd_jax.config_fields.values import whole
from apd_jax.decomposition import editing, saving
from apd_jax.decomposition.given_inputs import given_inputs
from apd_jax.evaluation import (
    compare,
    decomposition_table,
    evidence,
    ranking,
    seen,
    summarise,
    summary,
    tables,
)
from apd_jax.evaluation.evidence import Evidence
from apd_jax.evaluation.labels import label_array
from apd_jax.masked import forward
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class Decomposition:
    """A decomposed network.

    Attributes:
      target: the network.
      components: `{site: Factors}`.
      settings: settings of the decomposition.
      history: metrics at the end of every chunk, `[{"step": t, name: value}]`.
      example: a few inputs, which `save` keeps to check a loaded network with.
      losses: final losses of several initialisations; this one has the lowest.
      moves: how often each move of refinement was made, `{name: number}`.
      pilots: the short trainings that found k (`auto_topk.Pilot`), if k was searched for.
      others: components of the other initialisations, in their order, to compare with; not saved.
      other: examples of the other data of a targeted decomposition; not saved.
    """

    target: Target
    components: Components
    settings: Settings
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    example: PyTree | None = None
    losses: Sequence[float] = ()
    moves: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pilots: Sequence[Mapping[str, Any]] = ()
    others: Sequence[Components] = ()
    other: PyTree | None = None

    def __repr__(self) -> str:
        title = decomposition_table.title(self)
        return f"{title}\n{tables.text(*decomposition_table.table(self))}"

    def _repr_html_(self) -> str:
        return tables.as_html(decomposition_table.title(self), *decomposition_table.table(self))

    @property
    def objective(self) -> Objective:
        """The rule of the training, as it is at its end."""
        return self.settings.objective_at_end

    def attributions(self, x: PyTree) -> jax.Array:
        """Attributions A_c(x) [B, (T), C], or scores of gates, by the rule of the training."""
        x = given_inputs(self.target, x)
        return seen.score(self.objective, self.target, self.components, x)

    def mask(self, x: PyTree) -> jax.Array:
        """The active components on a batch, bool [B, (T), C], by the rule of the training."""
        x = given_inputs(self.target, x)
        return seen.look(self.objective, self.target, self.components, x)[1]

    def __call__(self, x: PyTree) -> PyTree:
        """Output with the active components alone, `f(x, κ(x))`, [B, O]."""
        x = given_inputs(self.target, x)
        return forward.masked_apply(self.target, self.components, x, self.mask(x))

    def see(self, x: PyTree, labels: Any = None) -> seen.Seen:
        """Attributions, active components and errors of N examples, in blocks."""
        x = given_inputs(self.target, x)
        rule, labels = self.objective, label_array(self.target, x, labels, self.objective)
        return seen.see(rule, self.target, self.components, x, self.settings.batch_size, labels)

    def summary(
        self,
        x: PyTree,
        labels: Any = None,
        baselines: str | Sequence[str] | None = ("svd", "neurons"),
        other: PyTree | None = None,
    ) -> summary.Summary:
        """Measure what the components do on examples, and flag a trivial decomposition.

        Args:
          x: [N, ...] examples, best not those of the training.
          labels: classes (whole numbers) or values, to say how well the network does its task; or
            `"next_tokens"` where an input is tokens [N, T].
          baselines: what to compare with at the same active rank, one or several: `"svd"`, the
            singular directions of every matrix; `"neurons"`, its columns; None for none.
          other: other data of a targeted decomposition; by default some examples of the training.

        Returns:
          A `Summary`: a table when printed, numbers as attributes.

        Raises:
          UserError: an unknown baseline, labels that don't fit the outputs.
        """
        other = None if other is None else given_inputs(self.target, other)
        return summarise.summarise(self, given_inputs(self.target, x), labels, baselines, other)

    def evidence(
        self,
        x: PyTree,
        labels: Any = None,
        *,
        valid: Any = None,
        adversary_steps: Sequence[int] = (20, 80),
        adversary_step_size: float = 0.1,
        adversary_starts: int = 1,
        draws: int = 4,
        baselines: str | Sequence[str] | None = ("svd", "bundled", "neurons"),
        limits: evidence.Limits | None = None,
        seed: int = 0,
    ) -> evidence.Evidence:
        """Measure what a sceptic asks of a decomposition, with standard errors and verdicts.

        The distance of outputs is the KL divergence in nats where the training minimises it, else
        the mean squared difference over that of a zero output.

        Args:
          x: [N, ...] examples that the training did not see.
          labels: classes [N] or [N, T], or `"next_tokens"` where an input is tokens [N, T]: adds
            the cross entropy.
          valid: bool [N] or [N, T], or a function of x: what counts; by default as in training.
          adversary_steps: numbers of steps of signed gradient ascent that are reported.
          adversary_step_size: size of a step, on masks between 0 and 1.
          adversary_starts: number of random starts; the strongest counts.
          draws: number of random masks per line.
          baselines: what to compare with at equal size: `"svd"`, `"bundled"`, `"neurons"`.
          limits: the largest values with which verdicts pass.
          seed: seed of all random draws.

        Returns:
          An `Evidence`: tables when printed, `to_dict()` for numbers.

        Raises:
          UserError: options out of their range, labels or `valid` that don't fit the outputs.
        """
        return evidence.evidence(
            self,
            given_inputs(self.target, x),
            labels,
            valid=valid,
            adversary_steps=adversary_steps,
            adversary_step_size=adversary_step_size,
            adversary_starts=adversary_starts,
            draws=draws,
            baselines=baselines,
            limits=limits,
            seed=seed,
        )

    def agreement(self) -> compare.SeedMatrix | None:
        """Compare the initialisations trained side by side; None if there was only one.

        Returns:
          MMCS and the share of components with a partner of cosine 0.9, for every pair; see
          `apd_jax.compare`.
        """
        if not self.others:
            return None
        place, others = int(np.argmin(self.losses)), list(self.others)
        return compare.compare_seeds([*others[:place], self.components, *others[place:]])

    def top_examples(self, component: int, x: PyTree, count: int = 10) -> ranking.TopExamples:
        """The examples that a component is most important for.

        They are ranked by its share of the squared attributions, so that the examples of large
        gradients don't come first for every component.

        Args:
          component: number of the component.
          x: [N, ...] examples.
          count: number of examples.

        Raises:
          UserError: no such component, a count that is not whole or below 1.
        """
        component = editing.check_component(self.components, component)
        return ranking.examples(self.see(x), component, whole("count", count))

    def ablate(self, x: PyTree, component: int | Sequence[int]) -> PyTree:
        """Output of all components but one or some, `f(x, Σ_{j≠c} P_j)`, [B, O].

        In a targeted decomposition with the remainder, `f(x, Σ_{j≠c} P_j + Δ)`.
        """
        x, kept = given_inputs(self.target, x), editing.mask_without(self.components, component)
        mask = jnp.broadcast_to(kept, (jax.tree.leaves(x)[0].shape[0], len(kept)))
        remainder = jnp.ones(len(mask)) if self.objective.targeted else None
        return forward.masked_apply(self.target, self.components, x, mask, remainder)

    def edited(self, scales: Mapping[int, float]) -> PyTree:
        """The network's parameters with some components taken out or scaled.

        Every site holds `Σ_c s_c P_c`, so that the network computes what `masked_apply` gives for
        the mask s; `edited({})` is the sum of all components. Other parameters stay, and in a
        targeted decomposition so does the remainder: `Σ_c s_c P_c + Δ`.

        Args:
          scales: `{component: s_c}`; 0 removes a component. Components not listed have 1.

        Returns:
          A pytree like the target's parameters.

        Raises:
          UserError: no such component, a scale that is no finite number.
        """
        return editing.edited(self.target, self.components, scales, self.objective.targeted)

    def to_torch(self, scales: Mapping[int, float] | None = None) -> dict[str, Any]:
        """The decomposed weights, edited, as torch tensors under torch's names.

        `module.load_state_dict(decomposition.to_torch({3: 0.0}), strict=False)` takes component 3
        out of the torch module.

        Args:
          scales: see `edited`; the sum of all components if None.

        Returns:
          `{name: tensor}` of the parameters that are decomposed, float32.

        Raises:
          UserError: the network is no torch module; see `edited`.
        """
        return editing.to_torch(self.target, self.components, scales or {}, self.objective.targeted)

    def plot(self, component: int) -> "Figure":
        """Draw a component's matrices next to those of the target, site by site."""
        from apd_jax.plotting import decomposition_figures  # matplotlib is slow to import

        component = editing.check_component(self.components, component)
        return decomposition_figures.component(self, component)

    def report(
        self,
        path: str | os.PathLike[str],
        x: PyTree,
        labels: Any = None,
        *,
        decode: Callable[[np.ndarray], str] | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        """Write an offline HTML page on this decomposition.

        Args:
          path: path of the page.
          x: [N, ...] examples.
          labels: see `summary`.
          decode: function that gives the text of tokens [T]; contexts are then shown as text, with
            the position marked.
          evidence: the evidence to show, such as that of held-out examples, or with other limits;
            None to measure it on the first examples of x.

        Raises:
          UserError: labels that don't fit the outputs; `decode` for inputs without tokens.
        """
        from apd_jax.report import decomposition_page

        x = given_inputs(self.target, x)
        decomposition_page.write(self, path, x, labels, decode=decode, evidence=evidence)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write components, the target's parameters and the settings; `load` reads them.

        The directory also gets `components.safetensors` and `config.json`, for other programs.

        Args:
          directory: a new or empty directory, or one that holds a saved decomposition.

        Raises:
          UserError: it holds other files.
          runtime.checkpoint.CheckpointError: it can't be written; what was there before stays.
        """
        saving.save(self, directory)
