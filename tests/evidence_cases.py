"""Networks whose evidence is known, and literal loops for its lines.

Letters: N examples, T positions, C components, V tokens.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np

import apd_jax
from apd_jax.components import Factors

BLOCKS, WIDTH = 6, 3


def decomposition(target, components, x, *, batch_size=8, **fields):
    """A decomposition that was not trained."""
    fields = {"coefficients": apd_jax.Coefficients(minimality=1.0), "topk": 1.0} | fields
    settings = apd_jax.Settings(
        objective=apd_jax.Objective(**fields),
        num_components=next(iter(components.values())).num_components,
        steps=2,
        batch_size=batch_size,
    )
    return apd_jax.Decomposition(target.at(x), components, settings)


def token_apply(params, tokens):
    """Each position reads the mean of the tokens up to it; logits [N, T, V]."""
    h = params["embed"][tokens]
    counts = jnp.arange(1, tokens.shape[1] + 1)[:, None]
    mixed = jnp.cumsum(h @ params["mix"], axis=1) / counts
    return jnp.tanh(h + mixed) @ params["out"]


def tokens(num_examples=5, length=4, size=6, width=3):
    """A network of tokens, inputs, and four components."""
    params = {
        "embed": networks.normal(0, size, width),
        "mix": networks.normal(1, width, width),
        "out": networks.normal(2, width, size),
    }
    target = apd_jax.Target(token_apply, params)
    x = jnp.asarray(np.random.default_rng(0).integers(0, size, (num_examples, length)), jnp.int32)
    components = networks.components(target.at(x), 4, 2)
    return decomposition(
        target, components, x, batch_size=5, topk=1.5, per_position=True, minimality_loss="kl"
    ), x


def literal_tokens(components, x, mask, numpy=np):
    """The network of tokens with masks [N, T, C], one position after another.

    With `numpy=jnp` it can be differentiated.
    """
    parts = {site: numpy.asarray(m) for site, m in networks.matrices(components).items()}
    outputs = []
    for row, example in zip(numpy.asarray(mask, float), np.asarray(x), strict=True):
        here = [{s: numpy.einsum("c,cij->ij", m, p) for s, p in parts.items()} for m in row]
        h = [w["embed"][token] for w, token in zip(here, example, strict=True)]
        written = [one @ w["mix"] for one, w in zip(h, here, strict=True)]
        each = []
        for t in range(len(example)):
            read = numpy.mean(numpy.stack(written[: t + 1]), axis=0)
            each.append(numpy.tanh(h[t] + read) @ here[t]["out"])
        outputs.append(numpy.stack(each))
    return numpy.stack(outputs)


def blocks_apply(params, x):
    """Two layers, no bias."""
    return jnp.tanh(x @ params["first"]) @ params["second"]


def blocks():
    """A network of six independent blocks, and inputs [N, 18] of one block each."""
    width = BLOCKS * WIDTH
    weights = np.zeros((2, width, width), np.float32)
    rng = np.random.default_rng(0)
    for b in range(BLOCKS):
        here = slice(b * WIDTH, (b + 1) * WIDTH)
        for site in range(2):
            weights[site, here, here] = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    x = np.zeros((96, BLOCKS, WIDTH), np.float32)
    x[np.arange(96), np.arange(96) % BLOCKS] = rng.normal(size=(96, WIDTH))
    x = jnp.asarray(rng.permutation(x).reshape(96, width))
    params = {"first": jnp.asarray(weights[0]), "second": jnp.asarray(weights[1])}
    return apd_jax.Target(blocks_apply, params, inputs=x), x


def shares(table):
    """A decomposition of `blocks`: component c holds `table[c, b]` of block b at both sites."""
    target, x = blocks()
    table = np.asarray(table, np.float32)
    components = {}
    for site, weight in target.weights.items():
        by_row = np.repeat(table, WIDTH, axis=1)[:, :, None]
        matrices = jnp.asarray(by_row * np.asarray(weight)[None])
        components[site] = Factors.from_matrices(matrices, weight.shape[0])
    return decomposition(target, components, x, batch_size=96), x


def own_masks(scores, valid, k):
    """The `floor(k·n)` largest scores [R, C] of the n valid rows."""
    order = sorted(
        (
            (-s, i)
            for i, s in enumerate(np.asarray(scores, np.float64).ravel())
            if valid[i // scores.shape[1]]
        ),
    )
    mask = np.zeros(scores.size, bool)
    mask[[i for _, i in order[: max(int(k * np.sum(valid)), 1)]]] = True
    return mask.reshape(scores.shape)


def unions(mask, valid, size):
    """Masks [R, C] of groups of `size` valid rows in order, and which rows are in one."""
    rows = np.flatnonzero(valid)
    width = min(size, len(rows))
    pooled, kept = np.zeros_like(mask), np.zeros(len(mask), bool)
    for start in range(0, len(rows) - width + 1, width):
        group = rows[start : start + width]
        pooled[group], kept[group] = mask[group].any(axis=0), True
    return pooled, kept


def divergence(outputs, targets):
    """KL(target ‖ outputs) of logits [..., V]."""
    ours, theirs = (jax.nn.log_softmax(jnp.asarray(z)) for z in (outputs, targets))
    return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
