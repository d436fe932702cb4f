"""Do the components of a network that adds modulo 23 align with Fourier frequencies?

    python examples/modular_addition.py

They do not, although the network's neurons do. Every frequency is needed for every pair, so
separating the frequencies would leave no component inactive. Instead each component serves some of
the pairs, and depends weakly on their sum. docs/examples.md has the results.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import apd_jax

MODULUS, WIDTH, NEURONS = 23, 32, 128
COMPONENTS, RANK, TOPK = 24, 2, 6
FREQUENCIES = MODULUS // 2
IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


def apply(params, pairs):
    """Return logits [B, 23] of the sum of the numbers in pairs [B, 2]."""
    x = params["embed"][pairs].sum(axis=1)
    return jax.nn.relu(x @ params["hidden"] + params["bias"]) @ params["out"]


def init(key):
    """Return initial parameters."""
    draw = [jax.random.fold_in(key, index) for index in range(3)]
    return {
        "embed": jax.random.normal(draw[0], (MODULUS, WIDTH)) / WIDTH**0.5,
        "hidden": jax.random.normal(draw[1], (WIDTH, NEURONS)) / WIDTH**0.5,
        "bias": jnp.zeros(NEURONS),
        "out": jax.random.normal(draw[2], (NEURONS, MODULUS)) / NEURONS**0.5,
    }


def train(params, pairs, steps):
    """Train with AdamW on all training pairs, with enough weight decay to generalise."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, steps), weight_decay=1.0)

    def loss(params):
        labels = pairs.sum(axis=1) % MODULUS
        logits = apply(params, pairs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
    return run((params, optimizer.init(params)))[0]


def spectra(readings):
    """Share of each frequency 1..11 in functions of a number, [..., 23, n] to [..., 11].

    The n columns of a reading are added up; the mean over the numbers counts for nothing.
    """
    power = np.square(np.abs(np.fft.rfft(np.asarray(readings), axis=-2)))[..., 1:, :].sum(-1)
    return power / power.sum(-1, keepdims=True)


def explained(scores):
    """Return explained shares of the variance of scores [23, 23, C] over pairs (a, b), each [C].

    The explaining functions are those of a + b, those of a - b, and sums of a function of a and one
    of b.
    """
    scores = np.asarray(scores)
    a, b = np.divmod(np.arange(MODULUS**2), MODULUS)
    flat = scores.reshape(-1, scores.shape[-1])
    flat = flat - flat.mean(0)

    def groups(index):
        means = np.stack([flat[index == value].mean(0) for value in range(MODULUS)])
        return np.square(means).mean(0) / np.square(flat).mean(0)

    return {
        "a + b": groups((a + b) % MODULUS),
        "a - b": groups((a - b) % MODULUS),
        "a and b alone": groups(a) + groups(b),
    }


def draw(spectrum, purities, scores, used, path):
    """Draw spectra of components, frequency shares with baselines, and attributions by pair."""
    figure = plt.figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    upper, lower = left.subplots(2, 1)
    drawn = upper.imshow(spectrum[used], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    upper.set(xlabel="frequency", ylabel="component", yticks=range(len(used)))
    upper.set_xticks(range(FREQUENCIES), range(1, FREQUENCIES + 1))
    upper.set_yticklabels(used, fontsize=6)
    left.colorbar(drawn, ax=upper, label="share of power")
    for name, values in purities.items():
        height = np.arange(1, len(values) + 1) / len(values)
        lower.plot(np.sort(values), height, label=name, drawstyle="steps-post")
    lower.set(xlabel="share of the strongest frequency", ylabel="cumulated", xlim=(0, 1))
    lower.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    grid = right.subplots(3, 3).flat
    for axis, component in zip(grid, used, strict=False):
        values = scores[..., component]
        axis.imshow(values, vmin=0, vmax=np.quantile(values, 0.98))
        axis.set(title=f"component {component}", xlabel="b", ylabel="a", xticks=[], yticks=[])
    right.suptitle("Attribution for every pair (a, b)", fontsize=10)
    figure.savefig(path, dpi=80)


def look(target, components, pairs, path):
    """Print and draw active components, their input spectra, and the sums that they follow."""
    score = jax.jit(lambda c: apd_jax.gradient_attributions(target, c, pairs, metric="fisher"))
    scores = score(components)
    mask = apd_jax.batch_topk_mask(scores, TOPK)
    outputs = apd_jax.masked_apply(target, components, pairs, mask)
    right = (outputs.argmax(-1) == pairs.sum(axis=1) % MODULUS).mean()
    share = np.asarray(mask.mean(0))
    used = [int(c) for c in np.argsort(-share) if share[c] > 0.01]
    print(f"accuracy with {TOPK} components a pair {right:.3f}; {len(used)} components are used")
    print(f"each is active on {share[used].min():.2f} to {share[used].max():.2f} of the pairs")

    embed, hidden = (np.asarray(target.params[name]) for name in ("embed", "hidden"))
    spectrum = spectra(embed @ np.asarray(components["hidden"].matrices()))
    noise = np.random.default_rng(0).normal(size=(500, MODULUS, RANK))
    purities = {
        "components in use": spectrum[used].max(-1),
        "neurons": spectra((embed @ hidden).T[..., None]).max(-1),
        "singular vectors": spectra((embed @ np.linalg.svd(hidden)[0]).T[..., None]).max(-1),
        "random functions (rank 2)": spectra(noise).max(-1),
    }
    print(f"the network's own spectrum {np.round(spectra(embed @ hidden), 2)}")
    for name, values in purities.items():
        print(f"share of the strongest frequency, {name}: median {np.median(values):.2f}")
    table = np.asarray(scores).reshape(MODULUS, MODULUS, -1)
    for name, values in explained(table).items():
        print(f"variance of attributions explained by {name}: median {np.median(values[used]):.2f}")
    draw(spectrum, purities, table, used, path)


def main():
    """Train, decompose, transform, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    parser.add_argument("--evidence", type=pathlib.Path, help="file for the evidence")
    parser.add_argument("--report", type=pathlib.Path, help="file for the report")
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    pairs = jnp.array([(a, b) for a in range(MODULUS) for b in range(MODULUS)])
    order = jax.random.permutation(jax.random.key(0), len(pairs))
    seen, held_out = pairs[order[:423]], pairs[order[423:]]
    params = train(init(jax.random.key(1)), seen, 20 if flags.quick else 4000)
    target = apd_jax.Target(apply, params, inputs=pairs[:2])
    for name, some in (("training", seen), ("held-out", held_out)):
        right = (target(some).argmax(-1) == some.sum(axis=1) % MODULUS).mean()
        print(f"accuracy on {name} pairs {right:.3f}")

    decomposition = apd_jax.decompose(
        target,
        lambda key, n: pairs[jax.random.randint(key, (n,), 0, len(pairs))],
        num_components=COMPONENTS,
        rank=RANK,
        topk=TOPK,
        minimality_loss="kl",
        metric="fisher",
        coefficients=apd_jax.Coefficients(minimality=1.0, simplicity=1.0),
        steps=20 if flags.quick else 2000,
        batch_size=256,
        learning_rate=3e-3,
        relative_rate=False,
        relative_losses=False,
    )
    print(decomposition.history[-1])
    look(target, decomposition.components, pairs, flags.images / "modular_addition.png")
    # All pairs, as in the training. Of the held-out ones alone, where the network is less certain,
    # a batch would choose components otherwise.
    sums = pairs.sum(axis=1) % MODULUS
    if flags.report:
        decomposition.report(flags.report, pairs, sums)
    if flags.evidence:
        evidence = decomposition.evidence(pairs, sums, adversary_steps=(20,))
        print(evidence)
        kept = {"numbers": evidence.to_dict(), "failed": evidence.failed}
        kept["passed"] = len(evidence.verdicts) - len(evidence.failed)
        flags.evidence.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
