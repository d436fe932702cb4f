"""Decompose a PyTorch network for handwritten digits, and take a component out of it.

    pip install 'apd_jax[torch]' scikit-learn
    python examples/torch_digits.py

The network of examples/digits.py, written and trained in PyTorch. One component is taken out of its
weights, and the edited network runs in PyTorch. docs/examples.md has the results.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits

import apd_jax

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


def load():
    """Return images [N, 1, 8, 8] and labels [N] for training (1437) and test (360)."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].reshape(-1, 1, 8, 8).astype(np.float32) / 16, y[order]
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def train(images, labels, steps):
    """Return two convolutions and a linear layer, trained with AdamW on the cross entropy."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 10),
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=1e-2)
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(steps):
        rows = torch.randint(len(labels), (128,))
        loss = torch.nn.functional.cross_entropy(module(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def accuracies(module, images, labels):
    """Return the accuracy on the images of every digit [10]."""
    with torch.no_grad():
        found = module(torch.from_numpy(images)).argmax(dim=1).numpy()
    return np.array([np.mean(found[labels == digit] == digit) for digit in range(10)])


def without_each(module, decomposition, images, labels):
    """Return the accuracy on every digit without each component [C, 10], run by torch."""
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = []
    for component in range(decomposition.settings.num_components):
        module.load_state_dict(decomposition.to_torch({component: 0.0}), strict=False)
        found.append(accuracies(module, images, labels))
    module.load_state_dict(own)
    return np.stack(found)


def draw(summary, activity, lost, path):
    """Draw accuracy against baselines, activity by digit, and accuracy lost by digit."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained")
    left, middle, right = axes
    rows = [row for row in summary.rows if row.name not in ("all components", "no components")]
    bars = left.barh([row.name for row in rows], [row.quality for row in rows])
    left.bar_label(bars, [f"{row.quality:.2f}" for row in rows], padding=2, fontsize=8)
    left.set(xlabel="test accuracy", xlim=(0, 1.15))
    left.invert_yaxis()
    titles = "share of images on which it is active", "accuracy lost without it"
    for axis, table, title in zip((middle, right), (activity, lost), titles, strict=True):
        drawn = axis.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set(xlabel="digit", ylabel="component", xticks=range(10), yticks=[], title=title)
        figure.colorbar(drawn, ax=axis)
    figure.savefig(path, dpi=80)


def report(component, before, after):
    """Print the accuracy on every digit with and without a component."""
    print("digit              " + "".join(f"{digit:6d}" for digit in range(10)))
    print("all components     " + "".join(f"{value:6.2f}" for value in before))
    print(f"without component {component:<2d}" + "".join(f"{v:5.2f} " for v in after))


def main():
    """Train, decompose, compare, edit, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    (images, labels), (test_images, test_labels) = load()
    module = train(images, labels, 20 if flags.quick else 1500)
    target = apd_jax.Target.from_torch(module, inputs=images[:4])
    print(target.sites)
    print(f"largest relative difference to torch: {target.conversion_error:.1e}")

    decomposition = apd_jax.decompose(
        target,
        images,
        num_components=40,
        rank=1,
        topk=4,
        selection="sample",
        minimality_loss="kl",
        coefficients={"simplicity": 2.0},
        steps=20 if flags.quick else 2000,
        batch_size=128,
    )
    print(decomposition.history[-1])
    summary = decomposition.summary(test_images, test_labels)
    print(summary)

    module.load_state_dict(decomposition.to_torch(), strict=False)
    before = accuracies(module, test_images, test_labels)
    after = without_each(module, decomposition, test_images, test_labels)
    selective = (before - after).max(axis=1) - (before - after).mean(axis=1)
    chosen = int(selective.argmax())
    report(chosen, before, after[chosen])
    mask = np.asarray(decomposition.mask(test_images))
    activity = np.stack([mask[test_labels == digit].mean(0) for digit in range(10)], axis=1)
    used = np.flatnonzero(summary.active_share > 0.01)
    order = used[np.lexsort((-activity[used].max(axis=1), activity[used].argmax(axis=1)))]
    path = flags.images / "torch_digits.png"
    draw(summary, activity[order], (before - after)[order], path)


if __name__ == "__main__":
    main()
