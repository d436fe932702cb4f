"""Captions of the figures of gated functions, and the meaning of their measures."""

from apd_jax.studies.captions import Caption

CAPTIONS: dict[str, Caption] = {
    "networks": Caption(
        "Target and components, weight by weight",
        "Each panel is one network. The inputs of a layer (x, the control bits, the output so far) "
        "are at the bottom, the neurons of each layer in the shaded boxes, and the entries that "
        "they write to at the top. The strength of a line is its weight relative to the target's "
        "weights of that kind, and its colour is the function that the weight belongs to. Purple "
        "lines are weights where the target has none. In a good decomposition every component has "
        "all lines of one colour and no purple lines.",
    ),
    "functions": Caption(
        "Each function, target and component",
        "The output as a function of x with one control bit on, for the target (broad, pale) and "
        "for the component with the largest attribution on each input (dashed). In a good "
        "decomposition the dashed line lies on the pale one. A flat or jagged dashed line means "
        "that no single component computes the function.",
    ),
    "function_map": Caption(
        "Which component holds which function",
        "Left: the share of each function's weights (row) in each component (column). In a "
        "faithful decomposition each row sums to 1. Right: the purity of each function. It is the "
        "squared weight of the function's component on the function's weights, divided by all "
        "squared weight of that component plus that of the other components on these weights. A "
        "good decomposition has one dark cell in every row and column, and purities above 0.95. "
        "Two dark cells in a column mean merged functions, several in a row a split function.",
    ),
}

MEASURES: dict[str, tuple[str, str]] = {
    "weight_purity": (
        "weight purity",
        "share of all squared weight that the components have on the weights of their own "
        "functions, for the best assignment of components to functions",
    ),
    "least_purity": (
        "least purity",
        "lowest purity of a function: the squared weight of its component on its weights, divided "
        "by all squared weight of that component plus that of the others on its weights",
    ),
    "scaled_purity": (
        "scaled purity",
        "weight purity with the weights of x, of the bits, and to the output each in units of "
        "their size in the target, so that the large weights of the bits do not dominate",
    ),
    "weight_outside": (
        "weight outside",
        "share of all squared weight at positions where the target has no weight",
    ),
    "curve_mse": (
        "curve MSE",
        "mean squared difference, over x and functions, between the target's output with one bit "
        "on and the output of the component with the largest attribution",
    ),
    "curve_error": (
        "curve error",
        "square root of the curve MSE divided by the mean square of the curves; 0 is perfect, and "
        "1 is as bad as an output of 0",
    ),
    "features_recovered": (
        "functions recovered",
        "number of functions with a purity of at least 0.95",
    ),
}
