"""What a study offers: everything about one family of networks that a run needs to know."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

from apd_jax.decomposition.result import Decomposition
from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies.captions import Caption
from apd_jax.studies.task import Task
from apd_jax.studies.verdicts import Published, Threshold


class ProbeInputs(NamedTuple):
    """Inputs that the component browser shows one by one; it calls them features.

    Attributes:
      x: [P, ...] the inputs.
      words: what one of them is, to follow "where": "one input feature is 1, all others are 0".
    """

    x: jax.Array
    words: str


class Study(abc.ABC):
    """A family of networks: how one is made, decomposed, measured, shown and judged.

    A study is a folder in studies/, named in studies/__init__.py; its study.py has a subclass of
    this, and one object of that as `STUDY`.

    Attributes:
      name: `config.name`.
      variants: what `config.variant` may be.
      task: a network of the family with its default hyperparameters.
      captions: the words for every figure that `draw` makes.
      main_figure: the figure that is drawn for every seed, the others for one of them.
      measures: words for its own numbers in results.json, `{key: (column title, meaning)}`.
    """

    name: str
    variants: tuple[str, ...]
    task: Task
    captions: Mapping[str, Caption]
    main_figure: str
    measures: Mapping[str, tuple[str, str]] = {}

    @abc.abstractmethod
    def title(self, variant: str) -> str:
        """A name for people: "Residual MLP, 2 layers"."""

    @abc.abstractmethod
    def description(self, task: Any) -> str:
        """One sentence for the report: what the target is and computes."""

    def published(self, variant: str) -> list[Published]:
        """Numbers that others report for a variant, each with the key of a number of ours."""
        del variant
        return []

    @abc.abstractmethod
    def thresholds(self, variant: str) -> list[Threshold]:
        """What a good decomposition reaches."""

    @abc.abstractmethod
    def evaluate(
        self, task: Any, decomposition: Decomposition, *, key: jax.Array, samples: int
    ) -> tuple[dict[str, float | int | bool], Any]:
        """Measure the decomposition of one seed.

        Args:
          task: what was decomposed.
          decomposition: of it.
          key: random key; the same key gives the same numbers.
          samples: size of the samples of the input distribution.

        Returns:
          (numbers, arrays): the numbers of results.json as Python values, `solved` among them, and
          whatever the methods below want to know.
        """

    @abc.abstractmethod
    def draw(
        self, numbers: Mapping[str, Any], arrays: Any, only: str | None = None
    ) -> dict[str, Figure]:
        """Figures by name; one of them alone if `only` is given."""

    @abc.abstractmethod
    def probes(self, task: Any) -> ProbeInputs:
        """Inputs for the component browser."""

    @abc.abstractmethod
    def represented(self, arrays: Any) -> list[list[int]]:
        """For every component, the places of the probe inputs that it stands for."""

    def views(self, target: Target) -> dict[str, View]:
        """How the browser shows a site; sites left out are shown in their own basis."""
        del target
        return {}
