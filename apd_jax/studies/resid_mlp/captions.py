"""What each figure of a residual MLP shows and how to read it; what its numbers mean."""

from apd_jax.studies.captions import LABEL_ERRORS, Caption

CAPTIONS: dict[str, Caption] = {
    "target_responses": Caption(
        "What the target computes",
        "Top: one input feature alone. Left, all outputs when it is 1; right, its own output as "
        "the input goes from -1 to 1. Bottom: the same for all features in turn, colour = feature; "
        "crosses and dashes are the labels. The outputs of inactive features are not exactly 0: "
        "that noise is the price of computing more features than there are neurons.",
    ),
    "neuron_contributions": Caption(
        "Neuron contributions, target and components",
        "What each neuron passes from a feature's input to the same feature's output when it is "
        "on, for the first ten features: in the target (top) and within the single component with "
        "the largest contribution to that feature (bottom). Neurons above 0.1 in the target carry "
        "their number in both rows, counted through all layers; with several layers, colour = "
        "layer. Good: the bottom row repeats the top row. A component that repeats neurons of two "
        "layers is a mechanism that spans layers.",
    ),
    "random_ablation": Caption(
        "One feature under random ablation",
        "Output of the MLPs (without the direct path) when one input is 1 and a random half of the "
        "components is off. Green: the feature's own component is kept on; purple: it is kept off; "
        "blue crosses: the target. Dots are means, bars standard deviations over the draws. Good: "
        "green stays at the crosses with short bars, purple falls to 0 at the feature's output.",
    ),
    "scrubbing": Caption(
        "Scrubbing: errors against the target",
        "Distribution over the training inputs of the squared error to the target's output, on a "
        "logarithmic axis. Top-k: only the components that batch top-k selects. Scrubbed: a random "
        "half of all components plus those of the active features. Anti-scrubbed: the same half "
        "minus those. Each feature's component is the one with the largest attribution for its "
        "one-hot input. Dashed lines are means over all inputs; inputs without any active feature "
        "have error 0 and count in the means, but are not drawn. Grey: the mean error of a network "
        "that computes one feature per neuron. Good: scrubbed close to top-k and left of grey, "
        "anti-scrubbed right of grey.",
    ),
    "feature_errors": Caption(
        "Error of every feature",
        "Mean squared error against the labels over inputs with that feature alone active, sorted "
        "by the target's error. Blue: target; orange, behind it: APD. Top: only the one component "
        "with the largest attribution; bottom: the components that batch top-k selects. Good: no "
        "orange visible. Orange in the top panel alone marks features that more than one component "
        "holds.",
    ),
    "components_needed": Caption(
        "Features that need more than one component",
        "Each mark is a feature. Across: the error to the target with one component per input. "
        "Up: how many components batch top-k activates on average when that feature alone is "
        "active. A feature counts as held by one component (blue) where that component alone "
        "brings the error below 10% of the error with no component. Good: all marks blue, at the "
        "left, near 1.",
    ),
    "component_counts": Caption(
        "Components by number of features",
        "A component represents a feature where its largest neuron contribution exceeds 0.04. Bars "
        "count the components that represent no, one, two or more features; the last bar counts "
        "the features that some component represents. Good: as many monosemantic components as "
        "features, none that are duo- or polysemantic.",
    ),
    "label_errors": Caption(
        "Error on the task by number of active features",
        LABEL_ERRORS.format(
            baseline="a network that computes one feature per neuron and passes the others through"
        ),
    ),
    "neuron_contributions_all": Caption(
        "Neuron contributions of all features",
        "As the neuron contributions above, for all features: in each pair of rows the target's on "
        "top and those of each feature's best component below.",
    ),
}

# key -> (column title, meaning)
MEASURES = {
    "scrubbed_mse": (
        "scrubbed MSE",
        "error with half of the components on at random, plus all those of the active features",
    ),
    "antiscrubbed_mse": (
        "anti-scrubbed MSE",
        "error with half of the components on at random, minus those of the active features; "
        "should be large",
    ),
    "random_mse": (
        "random MSE",
        "error with half of the components on at random, whatever the input",
    ),
    "monosemantic_mse": (
        "monosemantic MSE",
        "error of a baseline in which every neuron computes one feature perfectly and the "
        "other features get y = x",
    ),
    "zero_mse": ("zero MSE", "error of an output of zeros: the target's mean squared output"),
    "antiscrubbed_over_monosemantic": (
        "anti-scrubbed / monosemantic",
        "ratio of the two errors; above 1 the removed components do matter",
    ),
    "monosemantic_over_target": (
        "monosemantic / target",
        "ratio of the errors against the labels on inputs with an active feature; above 1 the "
        "target computes more functions than it has neurons",
    ),
    "contribution_cosine": (
        "contribution cosine",
        "mean over features of the cosine between the neuron contributions of the best "
        "component and of the target",
    ),
    "features_represented": (
        "features represented",
        "features that at least one component represents",
    ),
    "dead": ("dead", "components that represent no feature"),
    "monosemantic": ("one feature", "components that represent exactly one feature"),
    "duosemantic": ("two features", "components that represent two features"),
    "polysemantic": ("more", "components that represent more than two features"),
    "single_component_features": (
        "single-component features",
        "features for which one component alone removes 90% of the error over a sweep of that "
        "input",
    ),
    "two_component_features": (
        "two-component features",
        "features for which one component, or the two of largest attribution, remove 90% of that "
        "error",
    ),
}
