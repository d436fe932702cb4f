"""Captions of the figures of a TMS, and the meaning of its measures."""

from apd_jax.studies.captions import LABEL_ERRORS, Caption

CAPTIONS: dict[str, Caption] = {
    "components": Caption(
        "Target, sum and components",
        "Each column is one network, with inputs at the top, hidden units in the shaded box and "
        "outputs at the bottom. The darkness of a line is the size of the weight relative to the "
        "target's largest weight. With two hidden dimensions, the vectors above show the hidden "
        "direction of every feature (coloured like the inputs; pale: the target's). The features "
        "that a component recovers are listed below its name. In a good decomposition every "
        "feature has a component of its own, with one vector of the target's direction and length "
        "and one fan of lines, and the sum looks like the target. A component with two fans of "
        "lines merges two features; a component without lines is unused.",
    ),
    "component_map": Caption(
        "Which component holds which feature",
        "Left: the share of each feature's vector (row) in each component (column). In a faithful "
        "decomposition each row sums to 1. Right: the cosine between each feature's vector in its "
        "best component and in the target, and the ratio of their norms. A good decomposition has "
        "one dark cell in every row, at most one in every column, and both marks at 1. Two dark "
        "cells in a column mean merged features, several in a row a split feature. A norm ratio "
        "below 1 means shrinkage.",
    ),
    "label_errors": Caption(
        "Error on the task by number of active features",
        LABEL_ERRORS.format(
            baseline="a network that uses each hidden dimension for one feature and outputs 0 for "
            "all other features"
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
        "mean over features of the norm of the best component's vector, divided by the norm of "
        "the target's; 1 means no shrinkage",
    ),
    "features_recovered": (
        "features recovered",
        "number of features that have a component of their own with the right direction and norm",
    ),
}
