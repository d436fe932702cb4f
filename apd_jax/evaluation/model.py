"""What evaluation, figures and reports have to know of a decomposition.

The decomposition itself is a room above these, which uses them for its tables and pages.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from apd_jax.components import Components
from apd_jax.evaluation.compare import SeedMatrix
from apd_jax.evaluation.seen import Seen
from apd_jax.objective.objective import Objective
from apd_jax.sites import PyTree, Target
from apd_jax.training.config import Settings


class ComponentModel(Protocol):
    """A network with its components, as `decomposition.result.Decomposition` has it."""

    @property
    def target(self) -> Target:
        """The network."""

    @property
    def components(self) -> Components:
        """`{site: Factors}`."""

    @property
    def settings(self) -> Settings:
        """The settings of the decomposition."""

    @property
    def objective(self) -> Objective:
        """The objective at the end of training, whose selection decides what is active."""

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """Metrics at the end of every chunk of steps."""

    @property
    def example(self) -> PyTree | None:
        """A few inputs, which a saved decomposition checks the network with."""

    @property
    def losses(self) -> Sequence[float]:
        """Final losses of all restarts; empty if there was one."""

    @property
    def moves(self) -> Mapping[str, int]:
        """How often each move of refinement was made."""

    @property
    def pilots(self) -> Sequence[Mapping[str, float]]:
        """The short trainings by which k was found; empty if k was given."""

    @property
    def other(self) -> PyTree | None:
        """Examples of the other data of a targeted decomposition, if there are any."""

    def agreement(self) -> SeedMatrix | None:
        """What the initialisations side by side found, compared; None where there was only one."""

    def see(self, x: PyTree, labels: Any = None) -> Seen:
        """Attributions, active components and errors of N examples."""
