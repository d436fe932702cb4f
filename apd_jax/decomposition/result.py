"""A decomposed network: what its components do, and how it is kept.

Letters: B batch, N examples, T positions, C components, O outputs.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, num_components
from apd_jax.config_fields import check_whole
from apd_jax.errors import UserError
from apd_jax.evaluation import seen, summary, tables
from apd_jax.masked import forward
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TopExamples(NamedTuple):
    """The examples on which a component has the largest attributions.

    Attributes:
      examples: [n] numbers of the examples, largest attribution first.
      positions: [n] numbers of the positions, [n, axes] where they have several, or None where
        components are chosen for examples.
      scores: [n] attributions.
      active: [n] bool, whether the component is active there.
    """

    examples: np.ndarray
    positions: np.ndarray | None
    scores: np.ndarray
    active: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class Decomposition:
    """A decomposed network.

    Attributes:
      target: the network.
      components: `{site: Factors}`.
      settings: how it was decomposed.
      history: metrics at the end of every chunk, `[{"step": t, name: value}]`.
      example: a few inputs, which `save` keeps to check a loaded network with.
      losses: where there were several initialisations, their final losses; this is the one of the
        least.
      moves: how often each move of refinement was made, `{name: number}`.
      pilots: the short trainings that k was found by (`auto_topk.Pilot`), if it was looked for.
    """

    target: Target
    components: Components
    settings: Settings
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    example: PyTree | None = None
    losses: Sequence[float] = ()
    moves: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pilots: Sequence[Mapping[str, float]] = ()

    def __repr__(self) -> str:
        title = tables.decomposition_title(self)
        return f"{title}\n{tables.text(*tables.decomposition_table(self))}"

    def _repr_html_(self) -> str:
        return tables.as_html(tables.decomposition_title(self), *tables.decomposition_table(self))

    @property
    def objective(self) -> Objective:
        """The rule of the training, as it is at its end."""
        return self.settings.objective_at_end

    def attributions(self, x: PyTree) -> jax.Array:
        """Attributions A_c(x) [B, C] (or [B, T, C]), by the rule of the training."""
        self.target.at(x)
        return seen.score(self.objective, self.target, self.components, x)

    def mask(self, x: PyTree) -> jax.Array:
        """The active components on a batch, bool of the same shape, by the rule of the training."""
        self.target.at(x)
        return seen.look(self.objective, self.target, self.components, x)[1]

    def __call__(self, x: PyTree) -> PyTree:
        """Output with the active components alone, `f(x, κ(x))`, [B, O]."""
        return forward.masked_apply(self.target, self.components, x, self.mask(x))

    def see(self, x: PyTree) -> seen.Seen:
        """Attributions, active components and outputs of N examples, in blocks."""
        size = self.settings.batch_size
        return seen.see(self.objective, self.target, self.components, x, size)

    def summary(
        self,
        x: PyTree,
        labels: Any = None,
        baselines: str | Sequence[str] = ("svd", "neurons"),
    ) -> summary.Summary:
        """Measure what the components do on examples, and whether that is worth anything.

        Args:
          x: [N, ...] examples, best not those of the training.
          labels: classes (whole numbers) or values, to say how well the network does its task.
          baselines: what to hold it against at the same active rank, one or several: `"svd"`, the
            singular directions of every matrix; `"neurons"`, its columns.

        Returns:
          A `Summary`: a table when printed, numbers as attributes.

        Raises:
          UserError: an unknown baseline, labels that don't fit the outputs.
        """
        return summary.summarise(self, x, labels, baselines)

    def top_examples(self, component: int, x: PyTree, count: int = 10) -> TopExamples:
        """The examples on which a component has the largest attributions.

        Args:
          component: its number.
          x: [N, ...] examples.
          count: how many are wanted.

        Raises:
          UserError: no such component, a count that is not whole or below 1.
        """
        self._check(component)
        check_whole(count=count)
        return top_of(self.see(x), component, count)

    def ablate(self, x: PyTree, component: int | Sequence[int]) -> PyTree:
        """Output of all components but one or some, `f(x, Σ_{j≠c} P_j)`, [B, O]."""
        chosen = np.atleast_1d(np.asarray(component))
        for one in chosen.tolist():
            self._check(one)
        kept = ~np.isin(np.arange(num_components(self.components)), chosen)
        batch = jax.tree.leaves(x)[0].shape[0]
        mask = jnp.broadcast_to(jnp.asarray(kept), (batch, len(kept)))
        return forward.masked_apply(self.target, self.components, x, mask)

    def plot(self, component: int) -> "Figure":
        """Draw a component's matrices beside those of the target, site by site."""
        from apd_jax.plotting import decomposition_figures  # matplotlib is slow to import

        self._check(component)
        return decomposition_figures.component(self, component)

    def report(self, path: str | os.PathLike[str], x: PyTree, labels: Any = None) -> None:
        """Write an offline HTML page on this decomposition.

        Args:
          path: of the page.
          x: [N, ...] examples.
          labels: see `summary`.
        """
        from apd_jax.report import decomposition_page

        decomposition_page.write(self, path, x, labels)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write components, the target's parameters and the settings; `load` reads them.

        The directory also gets `components.safetensors` and `config.json`, for other programs.

        Args:
          directory: new, empty, or saved to before.

        Raises:
          UserError: it holds other files.
          runtime.checkpoint.CheckpointError: it can't be written; what was there before stays.
        """
        from apd_jax.decomposition import saving

        saving.save(self, directory)

    def _check(self, component: int) -> None:
        total = num_components(self.components)
        if not isinstance(component, int | np.integer) or not 0 <= component < total:
            raise UserError(f"component must be a whole number in [0, {total}), got {component!r}")


def top_of(found: seen.Seen, component: int, count: int) -> TopExamples:
    """`Decomposition.top_examples` of what was seen already."""
    scores = found.scores[:, component]
    rows = np.argsort(-scores, kind="stable")[:count]
    places = np.unravel_index(rows, found.lead)
    examples, *others = places
    positions = np.stack(others, axis=1) if len(others) > 1 else next(iter(others), None)
    return TopExamples(examples, positions, scores[rows], found.mask[rows, component])
