"""Captions of the figures of a residual MLP, and the meaning of its measures."""

from apd_jax.studies.captions import LABEL_ERRORS, Caption

CAPTIONS: dict[str, Caption] = {
    "target_responses": Caption(
        "What the target computes",
        "Top: a single input feature. Left, all outputs when it is 1; right, its own output as the "
        "input varies from -1 to 1. Bottom: the same for every feature in turn, coloured by "
        "feature; crosses and dashes are the labels. The outputs of inactive features are not "
        "exactly 0. This noise is the cost of computing more features than there are neurons.",
    ),
    "neuron_contributions": Caption(
        "Neuron contributions, target and components",
        "The contribution of a neuron to a feature is what it passes from the feature's input to "
        "its output when the neuron is active. Top: the first ten features in the target. Bottom: "
        "the same within the single component with the largest contribution to the feature. "
        "Neurons above 0.1 in the target are numbered in both rows, consecutively over all layers; "
        "with several layers, colours mark the layer. In a good decomposition the bottom row "
        "equals the top row. A component with neurons of two layers is a mechanism that spans "
        "layers.",
    ),
    "random_ablation": Caption(
        "One feature under random ablation",
        "Output of the MLPs (without the direct path) when one input is 1 and a random half of the "
        "components is off. Green: the feature's own component is always on; purple: it is always "
        "off; blue crosses: the target. Dots are means and bars standard deviations over random "
        "halves. In a good decomposition the green dots lie on the crosses with short bars, and "
        "the purple dots are near 0 at the feature's output.",
    ),
    "scrubbing": Caption(
        "Scrubbing: errors against the target",
        "Distribution over the training inputs of the squared difference from the target's output, "
        "on a logarithmic axis. Top-k: only the components that batch top-k selects. Scrubbed: a "
        "random half of all components plus those of the active features. Anti-scrubbed: the same "
        "half without those of the active features. The component of a feature is the one with the "
        "largest attribution for its one-hot input. Dashed lines are means over all inputs. Inputs "
        "without any active feature have error 0; they count in the means but are not drawn. "
        "Grey: the mean error of a network that computes one feature per neuron. In a good "
        "decomposition scrubbed is close to top-k and left of grey, and anti-scrubbed is right of "
        "grey.",
    ),
    "feature_errors": Caption(
        "Error of every feature",
        "Mean squared error against the labels on inputs with only that feature active, sorted by "
        "the target's error. Blue: target; orange, behind it: APD. Top: only the component with "
        "the largest attribution; bottom: the components that batch top-k selects. In a good "
        "decomposition no orange is visible. Orange in the top panel only marks features that are "
        "divided among several components.",
    ),
    "components_needed": Caption(
        "Features that need more than one component",
        "Each mark is a feature. Horizontal: the difference from the target with one component per "
        "input. Vertical: the mean number of components that batch top-k selects when only that "
        "feature is active. A feature counts as held by one component (blue) if that component "
        "alone brings the error below 10% of the error without any component. In a good "
        "decomposition all marks are blue and at the left, near a height of 1.",
    ),
    "component_counts": Caption(
        "Components by number of features",
        "A component represents a feature if its largest neuron contribution to it exceeds 0.04. "
        "Bars count the components that represent no, one, two or more features; the last bar "
        "counts the features that are represented by a component. A good decomposition has as many "
        "monosemantic components as features, and no duosemantic or polysemantic ones.",
    ),
    "label_errors": Caption(
        "Error on the task by number of active features",
        LABEL_ERRORS.format(
            baseline="a network that computes one feature per neuron and passes the others through"
        ),
    ),
    "neuron_contributions_all": Caption(
        "Neuron contributions of all features",
        "Neuron contributions as above, for all features. In each pair of rows, the upper row is "
        "the target and the lower row each feature's best component.",
    ),
}

# key -> (column title, meaning)
MEASURES = {
    "scrubbed_mse": (
        "scrubbed MSE",
        "error with a random half of the components on, plus those of the active features",
    ),
    "antiscrubbed_mse": (
        "anti-scrubbed MSE",
        "error with a random half of the components on, without those of the active features; "
        "should be large",
    ),
    "random_mse": (
        "random MSE",
        "error with a random half of the components on, regardless of the input",
    ),
    "monosemantic_mse": (
        "monosemantic MSE",
        "error of a baseline in which every neuron computes one feature perfectly and all other "
        "features get y = x",
    ),
    "zero_mse": ("zero MSE", "error of an output of zeros, which is the target's mean square"),
    "antiscrubbed_over_monosemantic": (
        "anti-scrubbed / monosemantic",
        "ratio of the two errors; above 1, the removed components matter",
    ),
    "monosemantic_over_target": (
        "monosemantic / target",
        "ratio of the errors against the labels on inputs with an active feature; above 1, the "
        "target computes more functions than it has neurons",
    ),
    "contribution_cosine": (
        "contribution cosine",
        "mean over features of the cosine between the neuron contributions of the best "
        "component and of the target",
    ),
    "features_represented": (
        "features represented",
        "number of features that at least one component represents",
    ),
    "dead": ("dead", "number of components that represent no feature"),
    "monosemantic": ("one feature", "number of components that represent exactly one feature"),
    "duosemantic": ("two features", "number of components that represent two features"),
    "polysemantic": ("more", "number of components that represent more than two features"),
    "single_component_features": (
        "single-component features",
        "number of features for which one component alone removes 90% of the error over a sweep "
        "of the feature's input",
    ),
    "two_component_features": (
        "two-component features",
        "number of features for which one component, or the two components of largest "
        "attribution, remove 90% of that error",
    ),
}
