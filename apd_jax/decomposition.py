"""A decomposed network: what its components do, and how it is kept.

Letters: B batch, C components, O outputs.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from apd_jax import forward
from apd_jax.components import Components, Factors
from apd_jax.fields import from_mapping
from apd_jax.runtime import export
from apd_jax.settings import Settings
from apd_jax.sites import Target


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A decomposed network.

    Attributes:
      target: the network.
      components: `{site: Factors}`.
      settings: how it was decomposed.
      history: metrics at the end of every chunk, `[{"step": t, name: value}]`.
    """

    target: Target
    components: Components
    settings: Settings
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def attributions(self, x: jax.Array) -> jax.Array:
        """Attributions A_c(x) [B, C], from the model that the decomposition was trained with."""
        return self.settings.objective.attribute(self.target, self.components, x).scores

    def mask(self, x: jax.Array) -> jax.Array:
        """The active components on a batch, [B, C] bool, by the rule of the training."""
        return self.settings.objective.select(self.attributions(x), x).mask

    def __call__(self, x: jax.Array) -> jax.Array:
        """Output with the active components alone, `f(x, κ(x))`, [B, O]."""
        return forward.masked_apply(self.target, self.components, x, self.mask(x))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write components, the target's parameters and the settings; `load` reads them.

        The directory also gets `components.safetensors` and `config.json`, for other programs.

        Args:
          directory: new, empty, or saved to before.

        Raises:
          UserError: it holds other files.
          runtime.checkpoint.CheckpointError: it can't be written; what was there before stays.
        """
        config = {
            "settings": dataclasses.asdict(self.settings),
            "sites": list(self.target.sites),
            "history": self.history,
        }
        export.save_components(directory, self.components, self.target.params, config)


def load(
    directory: str | os.PathLike[str],
    network: nn.Module | Callable[[Any, jax.Array], jax.Array],
) -> Decomposition:
    """Read what `Decomposition.save` wrote.

    Args:
      directory: the saved decomposition.
      network: the network itself, which is code and not saved: the Flax module, or the function
        `(params, x) -> output`.

    Raises:
      runtime.checkpoint.CheckpointError: nothing whole is there.
    """
    factors, params, config = export.load_components(directory)
    settings = from_mapping(Settings(), config["settings"])
    sites_of = config["sites"]
    if isinstance(network, nn.Module):
        target = Target.from_flax(network, {"params": params}, sites_of)
    else:
        target = Target(network, params, sites_of)
    components = {site: Factors.from_uv(f["U"], f["V"]) for site, f in factors.items()}
    return Decomposition(
        target, {site: components[site] for site in sites_of}, settings, config["history"]
    )
