"""What the gradient of a masked pass stores, and what it recomputes."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "sites", "all"]
_SITE_OUTPUT = "output of a site"
# Which values are stored for the gradient; None stores all that it reads.
_KEPT = {
    "none": None,
    "sites": jax.checkpoint_policies.save_only_these_names(_SITE_OUTPUT),
    "all": jax.checkpoint_policies.nothing_saveable,
}


def site_output(rows: jax.Array) -> jax.Array:
    """Mark the output rows of a masked site, which are stored under `remat="sites"`."""
    return checkpoint_name(rows, _SITE_OUTPUT)


def recomputed(remat: Remat, run: Callable) -> Callable:
    """Wrap a masked pass so that its gradient recomputes it, which takes less memory.

    Args:
      remat: what is recomputed: nothing, everything but the outputs of sites, or everything.
      run: function of the arrays that gradients are taken in.
    """
    policy = _KEPT[remat]
    return run if policy is None else jax.checkpoint(run, policy=policy)
