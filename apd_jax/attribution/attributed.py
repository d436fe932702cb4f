"""The result of an attribution method.

Letters: B batch, T positions, C components.
"""

from typing import NamedTuple

import jax

from apd_jax.sites import PyTree, Records


class Attributed(NamedTuple):
    """Attributions, and a pass of the network over the same inputs.

    Attributes:
      scores: [B, C] attributions A_c(x), or [B, T, C].
      outputs: outputs of the network in that pass, [B, ...].
      records: input and output rows of every use of a site in that pass.
    """

    scores: jax.Array
    outputs: PyTree
    records: Records
