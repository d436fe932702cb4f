"""What each figure shows and how to read it, in words for the report."""

from typing import NamedTuple


class Caption(NamedTuple):
    """The words that go with a figure.

    Attributes:
      title: its name.
      text: what is drawn, and what a good decomposition looks like.
    """

    title: str
    text: str


LABEL_ERRORS = (
    "Mean squared error against the labels, on the training distribution (inputs with at least one "
    "active feature) and on inputs with exactly n active features. Blue: the target. Orange: only "
    "the components with the largest attributions, as many as batch top-k selects, or n of them. "
    "Grey: {baseline}. Good: orange as low as blue, both below grey."
)
