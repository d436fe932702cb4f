"""Names of metrics: `group/name`, such as `loss/total`, or a name alone."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

LOSS = "loss/"  # begins the names of the loss terms and their total
COUNT = "count/"  # begins those of events that are counted: their sum over the steps of a chunk
NONFINITE_SCORES = f"{COUNT}nonfinite_scores"


def losses(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """The loss terms among metrics, by the terms' names, and a metric that is called `loss`."""
    wanted = (key for key in metrics if key == "loss" or key.startswith(LOSS))
    return {key.removeprefix(LOSS): metrics[key] for key in wanted}
