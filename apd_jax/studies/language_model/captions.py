"""Captions of the figures of a language model, and the meaning of its measures."""

from apd_jax.evaluation.evidence.result import label
from apd_jax.studies.captions import Caption

CAPTIONS: dict[str, Caption] = {
    "curves": Caption(
        "What few components explain",
        "Cross entropy recovered and KL divergence from the network's output, over the number of "
        "active components per position; the dotted line is the number in training. Beside the "
        "components (orange): singular vectors and neurons one by one, chosen by attribution, of "
        "the same active rank, and singular vectors in as many bundles as there are components, "
        "with as many bundles active as components. A good decomposition is above the others in "
        "the left panel and below them in the right panel, most of all where few are active.",
    ),
}

MEASURES: dict[str, tuple[str, str]] = {
    "kl": ("KL", "KL divergence from the network's output with the active components alone, nats"),
    "recovered": (
        "CE recovered",
        "share of the cross entropy between no component and the network that the active "
        "components recover",
    ),
    "ce_of_sum_above_target": (
        "CE of the sum − CE",
        "cross entropy with all components less that of the network, nats",
    ),
    "components_ever_active": (
        "ever active",
        "components that are active on any position of the evaluated text",
    ),
    **{
        f"evidence_{name}": (f"evidence: {label(name)}", "")
        for name in (
            "l0",
            "active_rank",
            "always_on",
            "ce_recovered",
            "own",
            "random",
            "adversarial_20",
            "faithfulness_worst",
        )
    },
}
