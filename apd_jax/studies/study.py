"""The interface of a study: everything about one family of networks that a run needs."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from apd_jax import studies
from apd_jax.decomposition.result import Decomposition
from apd_jax.report.browser import View
from apd_jax.sites import Target
from apd_jax.studies.captions import Caption
from apd_jax.studies.task import Task
from apd_jax.studies.verdicts import Published, Threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ProbeInputs(NamedTuple):
    """Inputs that the component browser shows one by one; it calls them features.

    Attributes:
      x: inputs, [P, ...].
      words: description of one input, to follow "where": "one input feature is 1, all others
        are 0".
    """

    x: jax.Array
    words: str


class Study(abc.ABC):
    """A family of networks: how one is created, decomposed, measured, drawn and judged.

    A study is a folder in studies/ that is named in studies/__init__.py. Its study.py defines a
    subclass of this class and an instance of it called `STUDY`.

    Attributes:
      name: value of `config.name`.
      task: a network of the family with its default hyperparameters.
      captions: captions of the figures.
      figures: figures by name, each a function of the numbers and arrays that `evaluate` returns.
      main_figure: name of the figure that is drawn for every seed; the others are drawn for one.
      measures: descriptions of the study's own numbers in results.json,
        `{key: (column title, meaning)}`.
    """

    name: str
    task: Task
    captions: Mapping[str, Caption]
    figures: Mapping[str, Callable[[Mapping[str, Any], Any], "Figure"]]
    main_figure: str
    measures: Mapping[str, tuple[str, str]] = {}

    @property
    def variants(self) -> tuple[str, ...]:
        """Allowed values of `config.variant`, from `studies.VARIANTS`."""
        return studies.VARIANTS[self.name]

    @abc.abstractmethod
    def title(self, variant: str) -> str:
        """A title for a variant, such as "Residual MLP, 2 layers"."""

    @abc.abstractmethod
    def description(self, task: Any) -> str:
        """A sentence for the report on what the target is and computes."""

    def published(self, variant: str) -> list[Published]:
        """Published numbers for a variant, each with the key of ours to compare with."""
        return []

    @abc.abstractmethod
    def thresholds(self, variant: str) -> list[Threshold]:
        """The conditions that a good decomposition meets."""

    @abc.abstractmethod
    def evaluate(
        self, task: Any, decomposition: Decomposition, *, key: jax.Array, samples: int
    ) -> tuple[dict[str, float | int | bool], Any]:
        """Measure the decomposition of one seed.

        Args:
          task: the decomposed network and its inputs.
          decomposition: the decomposition of one seed.
          key: PRNG key; the same key gives the same numbers.
          samples: number of samples of the input distribution.

        Returns:
          (numbers, arrays): numbers for results.json as Python values, including `solved`, and
          the arrays that the methods below need.
        """

    def evidence_examples(self, task: Any, key: jax.Array, samples: int) -> tuple[Any, Any]:
        """Inputs that the training did not see, and their labels, for the evidence.

        Args:
          task: the decomposed network and its inputs.
          key: PRNG key.
          samples: N.

        Returns:
          (x, labels): [N, ...] inputs, by default fresh samples of the input distribution, and
          classes [N] or [N, T], "next_tokens", or None for no cross entropy; see
          `Decomposition.evidence`.
        """
        return task.inputs(key, samples), None

    def draw(
        self, numbers: Mapping[str, Any], arrays: Any, only: str | None = None
    ) -> dict[str, "Figure"]:
        """The figures by name, or only the one called `only`."""
        from apd_jax.plotting import style  # matplotlib is slow to import

        makers = {
            name: functools.partial(make, numbers, arrays) for name, make in self.figures.items()
        }
        return style.make_figures(makers, only)

    def probes(self, task: Any) -> ProbeInputs | None:
        """The inputs for the component browser; None for no such browser."""
        return None

    def represented(self, arrays: Any) -> list[list[int]]:
        """For every component, the indices of the probe inputs that it represents.

        A study with `probes` defines it.
        """
        return []

    def contexts(self, arrays: Any) -> dict[str, Any] | None:
        """Components by their contexts (`report.contexts.content`), None for no section."""
        return None

    def views(self, target: Target) -> dict[str, View]:
        """How the browser shows sites; omitted sites are shown in their own basis."""
        return {}
