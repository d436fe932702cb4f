"""Which parameter components are the induction circuit of a two-layer attention-only transformer?

    python examples/induction.py

The network contains the circuit: one head attends to the previous token, and a head of the next
layer to the token after the last occurrence of the current one. One component holds most of both
heads, since they are needed together whenever a sequence repeats. They are not separated.
docs/examples.md has the results.
"""

import argparse
import functools
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

VOCABULARY, LENGTH, WIDTH, HEADS, HEAD_WIDTH = 16, 20, 32, 2, 16
PERIODS = (5, 9)  # shortest and longest repeated segment
INTO = ("query", "key", "value")
IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"


@functools.partial(jax.jit, static_argnums=1)
def sequences(key, n):
    """Return sequences that repeat a random segment of 5 to 9 tokens, or that count upwards.

    Returns tokens int32 [n, T], and the period of each sequence [n], 0 if it counts.
    """
    keys = jax.random.split(key, 4)
    stretch = jax.random.randint(keys[0], (n, PERIODS[1]), 0, VOCABULARY)
    period = jax.random.randint(keys[1], (n, 1), PERIODS[0], PERIODS[1] + 1)
    repeating = jnp.take_along_axis(stretch, jnp.arange(LENGTH) % period, axis=1)
    first = jax.random.randint(keys[2], (n, 1), 0, VOCABULARY)
    counting = (first + jnp.arange(LENGTH)) % VOCABULARY
    repeats = jax.random.bernoulli(keys[3], 0.5, (n, 1))
    return jnp.where(repeats, repeating, counting), (period * repeats)[:, 0]


def sample(key, n):
    """Return sequences, int32 [n, T]."""
    return sequences(key, n)[0]


def init(key):
    """Return initial parameters; heads are separate axes, so every head is a block of its site."""

    def normal(index, *shape, fan):
        return jax.random.normal(jax.random.fold_in(key, index), shape) / fan**0.5

    into, out = (WIDTH, HEADS, HEAD_WIDTH), (HEADS, HEAD_WIDTH, WIDTH)
    layers = [
        {name: normal(10 * i + j, *into, fan=WIDTH) for j, name in enumerate(INTO)}
        | {"out": normal(10 * i + 3, *out, fan=2 * WIDTH)}
        for i in range(2)
    ]
    return {
        "embed": normal(90, VOCABULARY, WIDTH, fan=4),
        "position": normal(91, LENGTH, WIDTH, fan=4),
        "layers": layers,
        "unembed": normal(92, WIDTH, VOCABULARY, fan=WIDTH),
    }


def attention(layer, x):
    """Return what a layer adds to x [B, T, d], and its attention patterns [B, heads, T, T]."""
    q, k, v = (jnp.einsum("btd,dnh->bnth", x, layer[n]) for n in INTO)
    scores = jnp.einsum("bnth,bnsh->bnts", q, k) / HEAD_WIDTH**0.5
    past = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    pattern = jax.nn.softmax(jnp.where(past, scores, -1e9))
    return jnp.einsum("bnts,bnsh,nhd->btd", pattern, v, layer["out"]), pattern


def forward(params, tokens):
    """Return logits of the next token [B, T, V], and the attention patterns of both layers."""
    x = params["embed"][tokens] + params["position"]
    patterns = []
    for layer in params["layers"]:
        added, pattern = attention(layer, x)
        x = x + added
        patterns.append(pattern)
    return x @ params["unembed"], jnp.stack(patterns, axis=1)


def apply(params, tokens):
    """Return logits of the next token [B, T, V]."""
    return forward(params, tokens)[0]


def train(params, steps):
    """Train to predict the next token; return parameters and losses."""
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 1e-2), weight_decay=1e-2)

    def loss(params, key):
        tokens = sample(key, 128)
        logits = apply(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(carry, key):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, optimizer.init(params)))


@jax.jit
def measure(params, tokens, period):
    """What a network with these parameters does.

    Returns the attention of every head, [2, layers, heads], to the token before and to the token
    after the last occurrence of this one, where sequences repeat; and the accuracy of the
    prediction where they repeat and where they count.
    """
    logits, patterns = forward(params, tokens)
    return *attended(patterns, period), *accuracy(logits, tokens, period)


def predictable(period):
    """Return masks [B, T - 1] of predictable tokens, for repeating and for counting sequences."""
    t, period = jnp.arange(LENGTH - 1), period[:, None]
    return (period > 0) & (t + 1 >= period), (period == 0) & (t > 0)


def attended(patterns, period):
    """Return attention to the previous token and after the last occurrence, [layers, heads]."""
    t = jnp.arange(LENGTH)
    repeated = (period[:, None] > 0) & (t >= period[:, None])
    sources = t - 1 + 0 * period[:, None], t - period[:, None] + 1
    for source in sources:
        index = jnp.clip(source, 0, LENGTH - 1)[:, None, None, :, None]
        found = jnp.take_along_axis(patterns, index, axis=-1)[..., 0]
        yield jnp.sum(found * repeated[:, None, None], axis=(0, 3)) / repeated.sum()


def accuracy(logits, tokens, period):
    """Return the accuracy on repeating and on counting sequences."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    for where in predictable(period):
        yield jnp.sum(right * where) / where.sum()


def without(params, vectors):
    """Return the parameters without each component in turn, leaves [C, ...]."""
    return jax.tree.map(lambda w, p: w - p, params, vectors)


def draw(shares, kept, params, others, sequence, path):
    """Draw activity by kind of sequence, accuracy without each component, attention patterns."""
    figure = plt.figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    upper, lower = left.subplots(2, 1)
    place = np.arange(len(kept))
    for axis, series, label in (
        (upper, shares, "share of sequences"),
        (lower, {"repeats": kept[:, 2], "counts": kept[:, 3]}, "accuracy without it"),
    ):
        for shift, (name, values) in zip((-0.2, 0.2), series.items(), strict=True):
            axis.bar(place + shift, values, 0.4, label=f"sequence {name}")
        axis.set(xticks=place, ylabel=label, ylim=(0, 1.05))
    lower.set_xlabel("component")
    upper.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    networks = {"network": params} | others
    for row, (name, some) in zip(right.subplots(len(networks), 4), networks.items(), strict=True):
        patterns = jax.jit(forward)(some, sequence[None])[1][0].reshape(-1, LENGTH, LENGTH)
        for place, (axis, pattern) in enumerate(zip(row, patterns, strict=True)):
            axis.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[], title=f"layer {place // HEADS}, head {place % HEADS}")
            axis.title.set_fontsize(8)
        row[0].set_ylabel(name)
    right.suptitle("Attention on a sequence that repeats", fontsize=10)
    figure.savefig(path, dpi=80)


def main():
    """Train, decompose, remove every component in turn, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    parser.add_argument("--evidence", type=pathlib.Path, help="file for the evidence")
    parser.add_argument("--report", type=pathlib.Path, help="file for the report")
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    steps = 20 if flags.quick else 2000
    (params, _), losses = train(init(jax.random.key(0)), steps)
    tokens, period = sequences(jax.random.key(2), 256)
    target = apd_jax.Target(apply, params, "layers/*", inputs=tokens)
    before, after, *right = measure(params, tokens, period)
    print(f"loss {losses[-1]:.3f}, accuracy on repeating {right[0]:.3f}, counting {right[1]:.3f}")
    print(f"attention to the token before, by layer and head:\n{before.round(2)}")
    print(f"attention to the token after the last occurrence:\n{after.round(2)}")

    decomposition = apd_jax.decompose(
        target,
        sample,
        num_components=6,
        rank=HEAD_WIDTH,
        topk=2,
        selection="sample",
        attribution_mode="sketch",
        num_probes=2,
        minimality_loss="kl",
        coefficients=apd_jax.Coefficients(faithfulness=300.0, minimality=1.0, simplicity=0.03),
        steps=steps,
        batch_size=64,
        learning_rate=3e-3,
        relative_rate=False,
        relative_losses=False,
        warmup_fraction=0.05,
    )
    print(decomposition.history[-1])
    mask = decomposition.mask(tokens)
    logits = jax.jit(apd_jax.masked_apply)(target, decomposition.components, tokens, mask)
    found = [round(float(value), 3) for value in accuracy(logits, tokens, period)]
    print(f"accuracy with the active components alone: repeating {found[0]}, counting {found[1]}")
    kinds = {"repeats": period > 0, "counts": period == 0}
    shares = {name: np.asarray(mask[where].mean(0)) for name, where in kinds.items()}
    vectors = apd_jax.in_parameter_space(target, decomposition.components)
    rest = without(params, vectors)
    kept = []
    for c in range(mask.shape[-1]):
        parts = measure(jax.tree.map(lambda p, c=c: p[c], rest), tokens, period)
        kept.append([parts[0][0].max(), parts[1][1].max(), *parts[2:]])
        active = ", ".join(f"{name} {share[c]:.2f}" for name, share in shares.items())
        print(f"component {c}: active on {active}; without it", np.round(kept[-1], 2))
    kept = np.array(kept)
    most = int(np.argmax(sum(shares.values())))
    others = {f"without {most}": jax.tree.map(lambda p: p[most], rest)}
    draw(shares, kept, params, others, tokens[period > 0][0], flags.images / "induction.png")
    if flags.report:
        decomposition.report(flags.report, tokens, "next_tokens")
    if flags.evidence:
        evidence = decomposition.evidence(tokens, "next_tokens", adversary_steps=(20,))
        print(evidence)
        kept = {"numbers": evidence.to_dict(), "failed": evidence.failed}
        kept["passed"] = len(evidence.verdicts) - len(evidence.failed)
        flags.evidence.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
