"""Captions of the figures of a linear map, and the meaning of its measures."""

from apd_jax.studies.captions import Caption
from apd_jax.studies.tms.captions import MEASURES as ROW_MEASURES

CAPTIONS: dict[str, Caption] = {
    "matrices": Caption(
        "Target, sum and components",
        "Each panel is a matrix, with inputs from top to bottom and outputs from left to right; "
        "blue is positive, red negative. The rank in a title is the effective rank, the squared "
        "sum of the singular values divided by the sum of their squares. In a good decomposition "
        "of a map with sparse inputs, every component has one row of the target and nothing else, "
        "and therefore rank 1. Faint patterns across a component are weights that other "
        "components cancel.",
    ),
    "spectra": Caption(
        "Singular values",
        "The singular values of every component (orange) and of the target (blue). In a good "
        "decomposition of a map with sparse inputs, each component has one singular value, equal "
        "to the norm of its row, and all others are 0.",
    ),
}

MEASURES: dict[str, tuple[str, str]] = {
    **{key: ROW_MEASURES[key] for key in ("mmcs", "ml2r", "features_recovered")},
    "effective_rank": (
        "effective rank",
        "squared sum of the singular values divided by the sum of their squares, averaged over "
        "components with their squared norms as weights; 1 is perfect if inputs are sparse",
    ),
    "relative_error": (
        "relative error",
        "top-k MSE divided by the mean square of the target's output",
    ),
}
