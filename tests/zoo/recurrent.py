"""Recurrent networks of Flax Linen: `nn.RNN` scans over time with the cell's weights constant."""

import flax.linen as nn
import jax.numpy as jnp

from zoo.linen import _network
from zoo.network import NETWORKS, B, T, normal

WIDTH, HIDDEN = 3, 4


def _cell(inputs, hidden):
    """Sites of one cell: matrices of its inputs, and of its hidden state."""
    sites = {f"cell/{name}/kernel": (WIDTH, HIDDEN) for name in inputs}
    return sites | {f"cell/{name}/kernel": (HIDDEN, HIDDEN) for name in hidden}


@NETWORKS.entry
def linen_simple_rnn():
    module = nn.RNN(nn.SimpleCell(HIDDEN))
    return _network(module, normal(B, T, WIDTH), _cell("i", "h"))


@NETWORKS.entry
def linen_lstm():
    inputs = [f"i{gate}" for gate in "ifgo"]
    hidden = [f"h{gate}" for gate in "ifgo"]
    return _network(nn.RNN(nn.LSTMCell(HIDDEN)), normal(B, T, WIDTH), _cell(inputs, hidden))


@NETWORKS.entry
def linen_gru():
    sites = _cell(["ir", "iz", "in"], ["hr", "hz", "hn"])
    return _network(nn.RNN(nn.GRUCell(HIDDEN)), normal(B, T, WIDTH), sites)


class _Bidirectional(nn.Module):
    @nn.compact
    def __call__(self, x):
        forward = nn.RNN(nn.SimpleCell(HIDDEN, name="forward"))
        backward = nn.RNN(nn.SimpleCell(HIDDEN, name="backward"), reverse=True, keep_order=True)
        h = jnp.concatenate([forward(x), backward(x)], axis=-1)
        return nn.Dense(2, name="out")(h[:, 0])


@NETWORKS.entry
def linen_bidirectional_rnn():
    sites = {"out/kernel": (2 * HIDDEN, 2)}
    for name in ("forward", "backward"):
        sites |= {f"{name}/i/kernel": (WIDTH, HIDDEN), f"{name}/h/kernel": (HIDDEN, HIDDEN)}
    return _network(_Bidirectional(), normal(B, T, WIDTH), sites)
