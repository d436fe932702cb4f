"""Which neurons carry which feature, in the target and in each component of a residual MLP.

Letters: C components, F features, D residual width, m rank, N neurons of all layers together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.sites import Target

REPRESENTS_ABOVE = 0.04
_PRECISION = jax.lax.Precision.HIGHEST


class Contributions(NamedTuple):
    """Neuron contributions of a residual MLP and of its components.

    Attributes:
      target: contribution of every neuron to every feature in the target, [F, N].
      components: the same within each component alone, [C, F, N].
      layer: layer of each neuron, [N] int.
      represents: whether the component's largest contribution to the feature exceeds
        `REPRESENTS_ABOVE`, [C, F] bool.
      best_component: component with the largest contribution to the feature, [F] int.
    """

    target: np.ndarray
    components: np.ndarray
    layer: np.ndarray
    represents: np.ndarray
    best_component: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The contributions of each feature's best component, [F, N]."""
        return self.components[self.best_component, np.arange(self.target.shape[0])]


def layer_names(target: Target) -> list[str]:
    """The layers of a residual MLP in order of depth: "layers_0", "layers_1", ...

    Raises:
      UserError: the target has no pair of sites "layers_i/mlp_in", "layers_i/mlp_out".
    """
    names: list[str] = []
    while f"layers_{len(names)}/mlp_in/kernel" in target.sites:
        names.append(f"layers_{len(names)}")
    if not names:
        raise UserError(
            f"Target has sites {tuple(target.sites)}; neuron contributions need a residual MLP "
            "with sites 'layers_0/mlp_in', 'layers_0/mlp_out', ..."
        )
    return names


def target_contributions(target: Target) -> jax.Array:
    """`(W_E W_in) ⊙ (W_out W_U)ᵀ`, layers side by side, [F, N].

    Entry (i, n) is what neuron n passes from input i to output i when it is active.
    """
    layers = layer_names(target)
    embed, unembed = target.params["W_E"], target.params["W_U"]
    blocks = []
    for layer in layers:
        read = jnp.matmul(embed, target.weights[f"{layer}/mlp_in/kernel"], precision=_PRECISION)
        write = jnp.matmul(target.weights[f"{layer}/mlp_out/kernel"], unembed, precision=_PRECISION)
        blocks.append(read * write.T)
    return jnp.concatenate(blocks, axis=-1)


def component_contributions(target: Target, components: Components) -> jax.Array:
    """`target_contributions` with each component's `W_in` and `W_out`, [C, F, N].

    The factors are multiplied with the embedding first, so that no component is materialised.
    """
    layers = layer_names(target)
    embed, unembed = target.params["W_E"], target.params["W_U"]
    blocks = []
    for layer in layers:
        into, out = components[f"{layer}/mlp_in/kernel"], components[f"{layer}/mlp_out/kernel"]
        read = jnp.einsum("fd,cdm->cfm", embed, into.U, precision=_PRECISION)
        read = jnp.einsum("cfm,cmn->cfn", read, into.V, precision=_PRECISION)
        write = jnp.einsum("cmd,df->cmf", out.V, unembed, precision=_PRECISION)
        write = jnp.einsum("cnm,cmf->cfn", out.U, write, precision=_PRECISION)
        blocks.append(read * write)
    return jnp.concatenate(blocks, axis=-1)


def neuron_contributions(target: Target, components: Components) -> Contributions:
    """Compute the neuron contributions of a residual MLP and of its components.

    Args:
      target: a residual MLP with `params["W_E"]` [F, D] and `params["W_U"]` [D, F].
      components: components of all of its MLP matrices.

    Returns:
      `Contributions`, on the host.
    """
    per_component = np.asarray(component_contributions(target, components))
    largest = per_component.max(axis=-1)
    widths = [target.weights[f"{layer}/mlp_in/kernel"].shape[1] for layer in layer_names(target)]
    return Contributions(
        target=np.asarray(target_contributions(target)),
        components=per_component,
        layer=np.repeat(np.arange(len(widths)), widths),
        represents=largest > REPRESENTS_ABOVE,
        best_component=largest.argmax(axis=0),
    )


def semantic_counts(represents: np.ndarray) -> dict[str, int]:
    """Count components by the number of features that they represent.

    Args:
      represents: whether a component represents a feature, [C, F] bool.

    Returns:
      "dead", "monosemantic", "duosemantic", "polysemantic": numbers of components with 0, 1, 2 and
      more features; "features_represented": number of features that a component represents.
    """
    features = np.asarray(represents).sum(axis=1)
    return {
        "dead": int((features == 0).sum()),
        "monosemantic": int((features == 1).sum()),
        "duosemantic": int((features == 2).sum()),
        "polysemantic": int((features > 2).sum()),
        "features_represented": int(np.asarray(represents).any(axis=0).sum()),
    }


def contribution_cosine(contributions: Contributions) -> float:
    """The mean over features of cos(best component's contributions, target's).

    It is 1 if every feature's best component uses the target's neurons in the target's
    proportions. A feature without any contribution counts as 0.
    """
    ours, theirs = contributions.best.astype(np.float64), contributions.target.astype(np.float64)
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    dots = (ours * theirs).sum(axis=-1)
    return float(np.mean(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)))
