"""Sums over examples gathered line by line, and the numbers made of them."""

import collections

import jax
import numpy as np

from apd_jax.evaluation.evidence.distance import Number, Sums, ratio


class Tally:
    """Numerators and denominators of every line, one entry per example.

    Only two numbers per example and line are kept, whatever the network's outputs are.
    """

    def __init__(self) -> None:
        self._errors: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        self._units: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        self._groups: dict[str, list[np.ndarray]] = collections.defaultdict(list)

    def add(self, name: str, sums: Sums, groups: np.ndarray | None = None) -> None:
        """Add a block's distances to a line, and its cross entropy to `ce_<name>`.

        Args:
          name: the line.
          sums: sums of the block.
          groups: [B] numbers of groups whose examples are not independent; each example alone if
            None.
        """
        error, unit, cross_entropy, labels = jax.device_get(sums)
        self.put(name, error, unit)
        if groups is not None:
            found = self._groups[name]
            start = 1 + found[-1].max() if found else 0
            found.append(np.asarray(groups) + start)
        if cross_entropy is not None:
            self.put(f"ce_{name}", cross_entropy, labels)

    def put(self, name: str, error: np.ndarray, unit: np.ndarray) -> None:
        """Add numerators and denominators of a line."""
        self._errors[name].append(np.asarray(error, np.float64))
        self._units[name].append(np.asarray(unit, np.float64))

    def put_difference(self, name: str, first: str, second: str, third: str) -> None:
        """Make a line `Σ (first − second) / Σ (first − third)` from three existing lines."""
        one, two, three = (np.concatenate(self._errors[n]) for n in (first, second, third))
        self.put(name, one - two, one - three)

    def names(self) -> list[str]:
        """Names of all lines."""
        return list(self._errors)

    def __contains__(self, name: str) -> bool:
        return name in self._errors

    def number(self, name: str) -> Number:
        """The ratio of a line, with its standard error."""
        groups = self._groups.get(name)
        return ratio(
            np.concatenate(self._errors[name]),
            np.concatenate(self._units[name]),
            np.concatenate(groups) if groups else None,
        )
