"""Whether a network gives logits of the tokens that it reads, as language models do.

Letters: B batch, T positions, V tokens of the vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.programs.equations import equations
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
    return any(_reads_rows(eqn, width) for eqn in equations(program.jaxpr))


def _reads_rows(eqn: Any, count: int) -> bool:
    """Whether an equation gathers single rows of a matrix of so many rows."""
    if eqn.primitive.name != "gather":
        return False
    table, row = eqn.invars[0].aval, eqn.params["slice_sizes"]
    return table.ndim == 2 and table.shape[0] == count and tuple(row) == (1, table.shape[1])
