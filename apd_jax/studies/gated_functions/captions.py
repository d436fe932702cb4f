"""Words of gated functions: what each figure shows and how to read it, what each number means."""

from apd_jax.studies.captions import Caption

CAPTIONS: dict[str, Caption] = {
    "networks": Caption(
        "Target and components, weight by weight",
        "Each panel is one network. At the bottom stands what a layer reads (x, the control bits, "
        "the output so far), in the shaded boxes the neurons of each layer, at the top what they "
        "write to. A line's strength is its weight relative to the target's weights of that kind, "
        "its colour the function that the weight belongs to; purple lines are weights where the "
        "target has none. Good: every component has all lines of one colour, and no purple.",
    ),
    "functions": Caption(
        "Each function, target and component",
        "The output over x with one control bit on: of the target (broad, pale) and of the one "
        "component with the largest attribution on each input (dashed). Good: the dashed line lies "
        "on the pale one. A flat or jagged dashed line means that no single component computes the "
        "function.",
    ),
    "function_map": Caption(
        "Which component holds which function",
        "Left: the share of each function's weights (row) that lies in each component (column); a "
        "row sums to 1 for a faithful decomposition. Right: purity, the squared weight of the "
        "function's component that lies on the function's weights, over all squared weight of that "
        "component and of others on those weights. Good: one dark cell in every row and column, "
        "and purities above 0.95. Two dark cells in a column are merged functions, several in a "
        "row a split one.",
    ),
}

MEASURES: dict[str, tuple[str, str]] = {
    "weight_purity": (
        "weight purity",
        "share of all squared weight that lies, on its own function's weights, in its component, "
        "for the best assignment of components to functions",
    ),
    "least_purity": (
        "least purity",
        "purity of the worst function: its component's squared weight on its weights, over all of "
        "that component's and that of others on its weights",
    ),
    "scaled_purity": (
        "scaled purity",
        "weight purity where weights of x, of bits, and to the output are each measured in units "
        "of their size in the target, so that the large weights of bits do not drown the others",
    ),
    "weight_outside": (
        "weight outside",
        "share of all squared weight that lies where the target has no weight",
    ),
    "curve_mse": (
        "curve MSE",
        "mean squared difference, over x and functions, between the target's output with one bit "
        "on and that of the one component with the largest attribution",
    ),
    "curve_error": (
        "curve error",
        "root of the curve MSE over the mean square of the curves; 0 is perfect, 1 as bad as 0",
    ),
    "features_recovered": (
        "functions recovered",
        "functions of purity at least 0.95",
    ),
}
