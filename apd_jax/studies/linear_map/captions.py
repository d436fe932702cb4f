"""Words of linear maps: what each figure shows and how to read it, what each number means."""

from apd_jax.studies.captions import Caption
from apd_jax.studies.tms.captions import MEASURES as ROW_MEASURES

CAPTIONS: dict[str, Caption] = {
    "matrices": Caption(
        "Target, sum and components",
        "Each panel is a matrix, inputs from top to bottom, outputs from left to right; blue is "
        "positive, red negative. The rank is the effective one, (sum of singular values)² over the "
        "sum of their squares. Good with sparse inputs: every component has one row of the target "
        "and nothing else, which is rank 1. Grey patterns all over a component are weights that "
        "other components cancel.",
    ),
    "spectra": Caption(
        "Singular values",
        "The singular values of every component (orange) and of the target (blue). Good with "
        "sparse inputs: one value as large as the row that the component holds, the others 0.",
    ),
}

MEASURES: dict[str, tuple[str, str]] = {
    **{key: ROW_MEASURES[key] for key in ("mmcs", "ml2r", "features_recovered")},
    "effective_rank": (
        "effective rank",
        "(sum of singular values)² over the sum of their squares, mean over components weighted by "
        "squared norm; 1 is perfect where inputs are sparse",
    ),
    "relative_error": (
        "relative error",
        "top-k MSE over the mean square of the target's output",
    ),
}
