"""Networks and components made by hand, whose measures are known without running anything."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.components import Components, Factors
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.decomposition.result import Decomposition
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.sites import Target
from apd_jax.studies.resid_mlp.network import ResidualMLP
from apd_jax.studies.tms.network import TMS
from apd_jax.training.config import Settings


def resid_mlp(
    w_in: Sequence[np.ndarray], w_out: Sequence[np.ndarray], embed: np.ndarray | None = None
) -> Target:
    """A residual MLP with the given matrices; identity embedding unless given."""
    width = w_in[0].shape[0]
    embed = np.eye(width) if embed is None else embed
    params = {"W_E": embed, "W_U": embed.T}
    for i, (read, write) in enumerate(zip(w_in, w_out, strict=True)):
        params[f"layers_{i}"] = {"mlp_in": {"kernel": read}, "mlp_out": {"kernel": write}}
    module = ResidualMLP(
        num_features=embed.shape[0], d_resid=width, neurons=tuple(w.shape[1] for w in w_in)
    )
    sites = "layers_*/mlp_*/kernel"
    return Target.from_flax(
        module, {"params": _float32(params)}, sites, inputs=jnp.zeros((2, len(embed)))
    )


def relu_labels(x: jax.Array) -> jax.Array:
    """The labels of the paper's residual MLPs, `x + ReLU(x)`, [B, F]."""
    return x + jax.nn.relu(x)


def objective(topk: float | None = 1.0, **options) -> Objective:
    """The rule by which components are active; by default one a row, in the batch."""
    return Objective(Coefficients(), topk, **options)


def exact_resid_mlp(features: int = 4) -> Target:
    """`y = x + ReLU(x)` exactly: neuron i reads input i and writes output i."""
    return resid_mlp([np.eye(features)], [np.eye(features)])


def neuron_components(shares: np.ndarray) -> Components:
    """Components of `exact_resid_mlp`: component c holds `shares[c, i]` of neuron i's weights."""
    matrices = np.stack([np.diag(row) for row in shares])
    return full_rank({"layers_0/mlp_in/kernel": matrices, "layers_0/mlp_out/kernel": matrices})


def full_rank(matrices: dict[str, np.ndarray]) -> Components:
    """Components with the given matrices [C, d_in, d_out]: `U = P`, `V = 1`."""
    components = {}
    for site, stack in matrices.items():
        identity = np.broadcast_to(np.eye(stack.shape[2]), (len(stack), *[stack.shape[2]] * 2))
        components[site] = Factors.from_uv(*_float32([stack, identity]))
    return components


def random_resid_mlp(
    rng: np.random.Generator,
    *,
    features: int,
    width: int,
    neurons: Sequence[int],
    num_components: int,
    rank: int,
) -> tuple[Target, Components]:
    """A residual MLP and components, all normal."""
    w_in = [rng.normal(size=(width, n)) for n in neurons]
    w_out = [rng.normal(size=(n, width)) for n in neurons]
    target = resid_mlp(w_in, w_out, rng.normal(size=(features, width)))
    return target, random_components(rng, target, num_components=num_components, rank=rank)


def random_components(
    rng: np.random.Generator, target: Target, *, num_components: int, rank: int
) -> Components:
    """Normal factors for every site of a target."""
    return {
        site: Factors.from_uv(
            *_float32(
                [
                    rng.normal(size=(num_components, weight.shape[0], rank)),
                    rng.normal(size=(num_components, rank, weight.shape[1])),
                ]
            )
        )
        for site, weight in target.weights.items()
    }


def tms(weight: np.ndarray, hidden: Sequence[np.ndarray] = ()) -> Target:
    """A TMS with the given W [F, h] and hidden layers [h, h], bias 0."""
    features, width = weight.shape
    params = {"linear1": {"kernel": weight}, "b_final": np.zeros(features)}
    params |= {f"hidden_{i}": {"kernel": matrix} for i, matrix in enumerate(hidden)}
    module = TMS(num_features=features, num_hidden=width, hidden_layers=len(hidden))
    inputs = jnp.zeros((2, features))
    return Target.from_flax(module, {"params": _float32(params)}, inputs=inputs)


def decomposition(target: Target, components: Components, batch_size: int = 32) -> Decomposition:
    """A decomposition by `objective`."""
    count = next(iter(components.values())).num_components
    settings = Settings(
        objective(), num_components=count, steps=1, batch_size=batch_size, learning_rate=1e-3
    )
    return Decomposition(target, components, settings)


def row_components(weight: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Components [C, F, h] of W [F, h]: component c holds `shares[c, j]` of row j."""
    return shares[:, :, None] * weight[None]


def ones(features: int, num_active: int) -> SparseFeatures:
    """Inputs with exactly `num_active` features on, each 1 but for rounding."""
    return SparseFeatures(
        features, 1.0, (1.0, 1.0 + 1e-6), input_mode="exactly_n", num_active=num_active
    )


def _float32(tree):
    if isinstance(tree, dict):
        return {name: _float32(node) for name, node in tree.items()}
    if isinstance(tree, list):
        return [_float32(node) for node in tree]
    return jnp.asarray(tree, jnp.float32)
