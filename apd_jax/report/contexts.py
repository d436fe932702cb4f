"""Components of a model of sequences, shown by the contexts in which they are active."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Context(NamedTuple):
    """A position of a sequence as text.

    Attributes:
      before, here, after: the text before the position, at it, and after it.
      share: the component's share of the squared attributions there (`ranking.shares`).
    """

    before: str
    here: str
    after: str
    share: float


class Described(NamedTuple):
    """A component and its contexts.

    Attributes:
      number: of the component.
      share: share of the positions that it is active on.
      sites: where most of its weights are, as text.
      without: KL divergence in nats of the output of all components from that without this one, the
        mean over the sequences of the contexts.
      contexts: the active positions with the largest shares of the squared attributions.
    """

    number: int
    share: float
    sites: str
    without: float
    contexts: Sequence[Context]


def content(components: Sequence[Described], drawn: Sequence[int]) -> dict[str, Any]:
    """What `contexts.html.j2` shows, for `parts.render`.

    Args:
      components: those that are ever active, most active first.
      drawn: numbers of the components that were drawn at random, and are shown first.
    """
    chosen = set(drawn)
    return {
        "contexts": {
            "drawn": [one for one in components if one.number in chosen],
            "all": list(components),
        }
    }
