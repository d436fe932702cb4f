"""Decompose a small convolutional network for handwritten digits, and compare with two baselines.

    python examples/digits.py

Of 40 components of rank 1 at each of three sites, 4 are active on every image. Their accuracy is
compared with that of singular vectors and of neurons at the same rank. docs/examples.md has the
results.
"""

import argparse
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import apd_jax

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


class Network(nn.Module):
    """Two convolutions and a dense layer: images [B, 8, 8, 1] to logits [B, 10]."""

    @nn.compact
    def __call__(self, x):
        """Return logits [B, 10]."""
        x = nn.relu(nn.Conv(8, (3, 3), name="conv_1")(x))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv_2")(x))
        return nn.Dense(10, name="dense")(x.reshape(x.shape[0], -1))


def load():
    """Return images [N, 8, 8, 1] and labels [N] for training (1437) and test (360)."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].reshape(-1, 8, 8, 1).astype(np.float32) / 16, y[order]
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def train(network, variables, images, labels, steps):
    """Train with AdamW on the cross entropy."""
    optimizer = optax.adamw(3e-3, weight_decay=1e-2)
    images, labels = jnp.array(images), jnp.array(labels)

    def loss(variables, key):
        rows = jax.random.randint(key, (128,), 0, len(labels))
        logits = network.apply(variables, images[rows])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(carry, key):
        variables, state = carry
        updates, state = optimizer.update(jax.grad(loss)(variables, key), state, variables)
        return (optax.apply_updates(variables, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0])
    return run((variables, optimizer.init(variables)))[0]


def draw(summary, activity, shown, decomposition, images, path):
    """Draw accuracy against baselines, activity by digit, and images of largest attribution."""
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    upper, lower = left.subplots(2, 1, height_ratios=(1, 2))
    rows = [row for row in summary.rows if row.name not in ("all components", "no components")]
    bars = upper.barh([row.name for row in rows], [row.quality for row in rows])
    upper.bar_label(bars, [f"{row.quality:.2f}" for row in rows], padding=2, fontsize=8)
    upper.set(xlabel="test accuracy", xlim=(0, 1.1))
    upper.invert_yaxis()
    drawn = lower.imshow(activity, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    lower.set(xlabel="digit", ylabel="component", xticks=range(10), yticks=[])
    left.colorbar(drawn, ax=lower, label="share of images on which it is active")
    for row, component in zip(right.subplots(len(shown), 8), shown, strict=True):
        top = decomposition.top_examples(component, images, count=8)
        for axis, index in zip(row, top.examples, strict=True):
            axis.imshow(images[index, ..., 0], cmap="gray_r")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(component, rotation=0, ha="right", va="center")
    right.suptitle("Test images of largest attribution", fontsize=10)
    figure.savefig(path, dpi=80)


def main():
    """Train, decompose, compare, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    parser.add_argument("--evidence", type=pathlib.Path, help="file for the evidence")
    parser.add_argument("--report", type=pathlib.Path, help="file for the report")
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    (images, labels), (test_images, test_labels) = load()
    network = Network()
    variables = network.init(jax.random.key(0), images[:1])
    variables = train(network, variables, images, labels, 20 if flags.quick else 1500)
    target = apd_jax.Target.from_flax(network, variables, inputs=images[:2])
    print(target.sites)

    decomposition = apd_jax.decompose(
        target,
        images,
        num_components=40,
        rank=1,
        topk=4,
        selection="sample",  # 4 on every image; batch top-k would give unusual images more
        minimality_loss="kl",
        coefficients={"simplicity": 2.0},
        steps=5 if flags.quick else 2000,
        batch_size=128,
    )
    print(decomposition.history[-1])
    summary = decomposition.summary(test_images, test_labels)
    print(summary)
    mask = np.asarray(decomposition.mask(test_images))
    used = np.flatnonzero(summary.active_share > 0.01)
    activity = np.stack([mask[test_labels == d][:, used].mean(0) for d in range(10)], axis=1)
    order = np.lexsort((-activity.max(axis=1), activity.argmax(axis=1)))  # sorted by digit
    shown = used[np.argsort(-summary.active_share[used])][:12].tolist()
    draw(summary, activity[order], shown, decomposition, test_images, flags.images / "digits.png")
    if flags.report:
        decomposition.report(flags.report, test_images, test_labels)
    if flags.evidence:
        evidence = decomposition.evidence(test_images, test_labels, adversary_steps=(20,))
        print(evidence)
        kept = {"numbers": evidence.to_dict(), "failed": evidence.failed}
        kept["passed"] = len(evidence.verdicts) - len(evidence.failed)
        flags.evidence.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
