"""What each figure of a TMS shows and how to read it; what its numbers mean."""

from apd_jax.studies.captions import LABEL_ERRORS, Caption

CAPTIONS: dict[str, Caption] = {
    "components": Caption(
        "Target, sum and components",
        "Each column is one network, drawn with inputs at the top, hidden units in the shaded box "
        "and outputs at the bottom; a line's darkness is the size of its weight relative to the "
        "target's largest. With two hidden dimensions, the vectors above show the hidden direction "
        "of every feature (same colours as the inputs; pale: the target's). Below its name each "
        "component lists the features it has recovered. Good: every feature has a component of its "
        "own, with one vector of the target's direction and length and one fan of lines, and the "
        "sum looks like the target. Two features in one component are merged; a component without "
        "lines is unused.",
    ),
    "component_map": Caption(
        "Which component holds which feature",
        "Left: the share of each feature's vector (row) that lies in each component (column); each "
        "row sums to 1 for a faithful decomposition. Right: cosine between each feature's vector "
        "in its best component and in the target, and the ratio of their lengths. Good: one dark "
        "cell in every row, at most one in a column, and both marks at 1. Two dark cells in a "
        "column are merged features; several in a row, a split one; a norm ratio below 1 is "
        "shrinkage.",
    ),
    "label_errors": Caption(
        "Error on the task by number of active features",
        LABEL_ERRORS.format(
            baseline="a network that gives each hidden dimension to one feature and outputs 0 for "
            "the others"
        ),
    ),
}

# key -> (column title, meaning)
MEASURES = {
    "mmcs": (
        "MMCS",
        "mean over features of the largest cosine between the feature's direction in the "
        "target and in any component",
    ),
    "ml2r": (
        "ML2R",
        "mean over features of the norm ratio between the best component's direction and the "
        "target's; 1 is no shrinkage",
    ),
    "features_recovered": (
        "features recovered",
        "features that a component of their own recovers, in direction and in size",
    ),
}
