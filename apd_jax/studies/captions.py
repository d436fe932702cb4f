"""Captions of figures for the report: what each figure shows and how to read it."""

from typing import NamedTuple


class Caption(NamedTuple):
    """The caption of a figure.

    Attributes:
      title: title of the figure.
      text: what is drawn, and what a good decomposition looks like.
    """

    title: str
    text: str


LABEL_ERRORS = (
    "Mean squared error against the labels, on the training distribution (inputs with at least one "
    "active feature) and on inputs with exactly n active features. Blue: the target. Orange: the "
    "active components alone, selected by batch top-k on the training distribution, and the n "
    "components of largest attribution otherwise. Grey: {baseline}. A good decomposition has "
    "orange bars as low as the blue ones, and both below grey."
)
