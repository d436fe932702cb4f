"""A small attention network with a padding mask, and the same batch with and without padding.

Also a model of tokens, of which 0 is padding.
Letters: B batch, t real positions, T positions of a padded batch, O outputs, V tokens.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.sites import Target

B, REAL, PADDED, WIDTH, OUTPUTS, TOKENS = 3, 4, 7, 5, 3, 11


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5, "f4")


def parameters():
    names = ("q", "k", "v", "o")
    params = {name: normal(i, WIDTH, WIDTH) for i, name in enumerate(names)}
    return params | {"embed": normal(5, TOKENS, WIDTH), "read": normal(6, WIDTH, OUTPUTS)}


def network(*, causal=False, pooled=False, masked=-1e9, nan=False):
    """A `Target` of inputs `{"ids": [B, T], "mask": [B, T]}`; outputs [B, T, O], or [B, O]."""
    return _network(causal, pooled, masked, nan)


@functools.cache  # so that tests share what is compiled
def _network(causal, pooled, masked, nan):
    def apply_fn(p, x):
        mask = x["mask"] != 0
        h = p["embed"][x["ids"]]
        scores = jnp.einsum("bqd,bkd->bqk", h @ p["q"], h @ p["k"])
        seen = mask[:, None, :]
        if causal:
            seen = seen & jnp.tril(jnp.ones((mask.shape[1],) * 2, bool))
        weights = jax.nn.softmax(scores + jnp.where(seen, 0.0, masked), axis=-1)
        h = h + jnp.einsum("bqk,bkd->bqd", weights, h @ p["v"]) @ p["o"]
        out = jnp.tanh(h) @ p["read"]
        if nan:
            out = jnp.where(mask[..., None], out, jnp.nan)
        if pooled:
            return jnp.sum(out * mask[..., None], axis=1) / jnp.sum(mask, axis=1)[:, None]
        return out

    # `k` is used as `q` is, and `o` as `v`: sites less, which take their time to compile.
    return Target(apply_fn, parameters(), ["embed", "q", "v", "read"], inputs=batch())


@functools.cache
def language_model():
    """A causal `Target` of tokens [B, T], 0 for padding; its outputs are logits [B, T, V]."""
    inner = network(causal=True)

    def apply_fn(p, ids):
        return inner.apply_fn(p, {"ids": ids, "mask": ids > 0})

    params = parameters() | {"read": normal(6, WIDTH, TOKENS)}
    return Target(apply_fn, params, ["embed", "q", "v", "read"], inputs=tokens())


def tokens(side="none", count=B):
    """Tokens of `REAL` real positions, with zeros to `PADDED` on one side."""
    ids = np.random.default_rng(0).integers(1, TOKENS, (count, REAL)).astype(np.int32)
    rest = {"none": (0, 0), "left": (PADDED - REAL, 0), "right": (0, PADDED - REAL)}
    return np.pad(ids, ((0, 0), rest[side]))


def batch(side="none", count=B, seed=0):
    """A batch of `REAL` real positions, with padding to `PADDED` on one side."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, TOKENS, (count, REAL)).astype(np.int32)
    mask = np.ones_like(ids)
    if side == "none":
        return {"ids": ids, "mask": mask}
    rest = PADDED - REAL
    ends = (rest, 0) if side == "left" else (0, rest)
    noise = np.random.default_rng(7).integers(0, TOKENS, (count, PADDED)).astype(np.int32)
    mask = np.pad(mask, ((0, 0), ends))
    return {"ids": np.where(mask, np.pad(ids, ((0, 0), ends)), noise), "mask": mask}


def real(side):
    """Places of the real positions."""
    return slice(PADDED - REAL, None) if side == "left" else slice(0, REAL)


def valid(x):
    return x["mask"]
