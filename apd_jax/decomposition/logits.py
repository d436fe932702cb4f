"""Whether a network gives logits of the tokens that it reads, as language models do.

Letters: B batch, T positions, V tokens of the vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from apd_jax.errors import UserError
from apd_jax.sites import PyTree, Target
from apd_jax.sites.program import trace


def gives_logits_of_tokens(target: Target, x: PyTree) -> bool:
    """Whether a network looks tokens up in a table of V rows and gives V numbers for each of them.

    The width tells logits from hidden states, which have the width of the network.

    Args:
      target: the network.
      x: inputs [B, ...] or their shapes; tokens are integers [B, T].

    Returns:
      True if the only output is [B, T, V], an input is integers [B, T], and a matrix of V rows is
      read row by row. False too for a network that fails on the inputs, which is refused elsewhere.
    """
    try:
        program = trace(target.apply_fn, target.params, x).closed
    except UserError:
        return False
    outputs = program.out_avals
    if len(outputs) != 1 or outputs[0].ndim != 3:
        return False
    *positions, width = outputs[0].shape
    tokens = [leaf for leaf in jax.tree.leaves(x) if list(np.shape(leaf)) == positions]
    if not any(jnp.issubdtype(jnp.result_type(leaf), jnp.integer) for leaf in tokens):
        return False
    return width in _tables(program.jaxpr)


def _tables(jaxpr: Any) -> Iterator[int]:
    """Numbers of rows of the matrices of which a program gathers single rows."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "gather":
            table = eqn.invars[0].aval
            row = (1, *table.shape[1:])
            if table.ndim == 2 and tuple(eqn.params["slice_sizes"]) == row:
                yield table.shape[0]
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _tables(inner)
