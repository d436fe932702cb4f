"""What the gradient of a masked pass keeps, and what it computes again."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "sites", "all"]
_SITE_OUTPUT = "output of a site"
# What the gradient of a masked pass keeps; None for everything that it reads.
_KEPT = {
    "none": None,
    "sites": jax.checkpoint_policies.save_only_these_names(_SITE_OUTPUT),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def site_output(rows: jax.Array) -> jax.Array:
    """Rows that a masked site gives, which `"sites"` keeps."""
    return checkpoint_name(rows, _SITE_OUTPUT)


def recomputed(remat: Remat, run: Callable) -> Callable:
    """A masked pass that is computed again for its gradient, which keeps less memory busy.

    Args:
      remat: what is computed again: nothing, all but the outputs of sites, or everything.
      run: function of the arrays that gradients are taken in.
    """
    policy = _KEPT[remat]
    return run if policy is None else jax.checkpoint(run, policy=policy)
