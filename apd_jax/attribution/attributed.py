"""What an attribution method gives.

Letters: B batch, T positions, C components.
"""

from typing import NamedTuple

import jax

from apd_jax.sites import PyTree, Records


class Attributed(NamedTuple):
    """Attributions, and a pass over the same inputs.

    Attributes:
      scores: [B, C] attributions A_c(x), or [B, T, C].
      outputs: what the network gave in that pass, [B, ...].
      records: input and output rows of every use of a site in it.
    """

    scores: jax.Array
    outputs: PyTree
    records: Records
