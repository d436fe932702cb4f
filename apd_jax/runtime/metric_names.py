"""Names of metrics: `group/name`, such as `loss/total`, or a name alone."""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")

LOSS = "loss"  # the group of the loss terms and their total
COUNT = "count"  # the group of events that are counted: their sum over the steps of a chunk
NONFINITE_SCORES = f"{COUNT}/nonfinite_scores"


class MetricName(NamedTuple):
    """A metric's name.

    Attributes:
      group: the kind of the metric; empty for a metric of its own.
      name: its name within the group.
    """

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}" if self.group else self.name


def parse(key: str) -> MetricName:
    """The name of the metric under a key of metrics.jsonl."""
    group, _, name = key.rpartition("/")
    return MetricName(group, name)


def counts(key: str) -> bool:
    """Whether a metric counts events."""
    return parse(key).group == COUNT


def losses(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """The loss terms among metrics, by the terms' names, and a metric that is called `loss`."""
    wanted = (key for key in metrics if key == LOSS or parse(key).group == LOSS)
    return {parse(key).name: metrics[key] for key in wanted}
