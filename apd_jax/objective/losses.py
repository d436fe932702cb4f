"""The losses of APD, each a pure function of arrays.

Letters: B batch, C components, m rank, O outputs, N number of decomposed weights (a matrix used
twice counts twice), p Schatten power, s_c(x) mask.
"""

import math
from collections.abc import Iterable
from typing import Literal, cast

import jax
import jax.numpy as jnp

from apd_jax import validity
from apd_jax.components import Components
from apd_jax.errors import UserError
from apd_jax.programs.axes import spread
from apd_jax.programs.widened import widened
from apd_jax.sites import PyTree, Records
from apd_jax.validity import Valid

# Added to squares before they are raised to a power below 1, whose slope at 0 is infinite.
EPSILON = 1e-16


def faithfulness(
    components: Components, weights: dict[str, jax.Array], uses: dict[str, float]
) -> jax.Array:
    """Squared distance of the components' sum from the target, `(1/N) Σ_l ‖θ*_l − Σ_c P_{c,l}‖²`.

    Args:
      components: `{site: Factors}`.
      weights: `{site: [d_in, d_out]}`, θ*.
      uses: number of uses of each site in a pass; its term and its share of N count that often.

    Returns:
      Scalar.
    """
    total = sum(weights[site].size * uses[site] for site in components)
    with jax.default_matmul_precision("highest"):
        squares = (
            uses[site] * jnp.sum(jnp.square(weights[site] - factors.sum()))
            for site, factors in components.items()
        )
        return total_of(squares) / total


def output_mse(outputs: PyTree, target_outputs: PyTree) -> jax.Array:
    """Mean over batch and outputs of the squared difference (minimality of the top-k objective).

    Args:
      outputs: [B, ...], `f(x, κ(x))`; or `f(x, Σ_c P_c)` for the output loss of all components.
      target_outputs: [B, ...], `f(x, θ*)`.
    """
    ours, theirs = jax.tree.leaves(outputs), jax.tree.leaves(target_outputs)
    squares = [_squared_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    if len(squares) == 1:
        return jnp.mean(squares[0])
    return total_of(jnp.sum(s) for s in squares) / sum(s.size for s in squares)


def mse_parts(
    outputs: PyTree, target_outputs: PyTree, valid: Valid = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of the squared differences where `valid` is True, and their number; see `output_mse`."""
    ours, theirs = (
        jax.tree.leaves(validity.keep(valid, tree)) for tree in (outputs, target_outputs)
    )
    total, count = jnp.float32(0), jnp.float32(0)
    for a, b in zip(ours, theirs, strict=True):
        counted = None if valid is None else validity.of_entries(valid, b)
        part, number = validity.parts(_squared_difference(a, b), counted)
        total, count = total + part, count + number
    return total, count


def output_kl(logits: PyTree, target_logits: PyTree) -> jax.Array:
    """Mean over batch and positions of `KL(softmax(target) ‖ softmax(logits))`.

    A single logit stands for the two classes of a sigmoid. Classes that the target excludes by a
    logit of −∞ add nothing.

    Args:
      logits: [B, ..., K] of the masked network.
      target_logits: [B, ..., K] of the target.

    Raises:
      UserError: outputs that are not one array of logits.
    """
    return jnp.mean(kl_each(logits, target_logits))


def kl_parts(
    logits: PyTree, target_logits: PyTree, valid: Valid = None
) -> tuple[jax.Array, jax.Array]:
    """Sum of the divergences where `valid` is True, and their number; see `output_kl`."""
    values = kl_each(validity.keep(valid, logits), validity.keep(valid, target_logits))
    counted = None if valid is None else validity.of_values(valid, values, "the KL loss")
    return validity.parts(values, counted)


def kl_each(logits: PyTree, target_logits: PyTree) -> jax.Array:
    """`KL(softmax(target) ‖ softmax(logits))` at every position, [B, ...]; see `output_kl`."""
    (ours, *more), (theirs, *_) = jax.tree.leaves(logits), jax.tree.leaves(target_logits)
    if more:
        raise UserError(
            f"the KL loss needs one array of logits, got {1 + len(more)} outputs: let the network "
            "return the logits alone, or set minimality_loss='mse'"
        )
    ours, theirs = widened(ours), widened(theirs)
    if ours.ndim == 1 or ours.shape[-1] == 1:
        ours, theirs = (jnp.stack([z, -z], axis=-1) for z in (ours, theirs))
        our_log, their_log = jax.nn.log_sigmoid(ours), jax.nn.log_sigmoid(theirs)
    else:
        our_log, their_log = jax.nn.log_softmax(ours), jax.nn.log_softmax(theirs)
    # 0 · (−∞ − …) is NaN: the logarithms of excluded classes are replaced before the product, so
    # that gradients stay finite too.
    possible = their_log > -jnp.inf
    difference = jnp.where(possible, their_log, 0.0) - jnp.where(possible, our_log, 0.0)
    return jnp.sum(jnp.exp(their_log) * difference, axis=-1)


def rank_one_norms(components: Components) -> dict[str, jax.Array]:
    """`‖U_{c,l,:,m}‖² ‖V_{c,l,m,:}‖²` of every rank-one term, `{site: [C, (G,) m]}`."""
    return {
        site: jnp.sum(jnp.square(f.reads), -1) * jnp.sum(jnp.square(f.writes), -1)
        for site, f in components.items()
    }


def simplicity(
    components: Components,
    active_counts: jax.Array,
    *,
    p: float,
    uses: dict[str, float],
    batch_size: int | jax.Array,
) -> jax.Array:
    """Schatten-p norms of the active components.

    `(1/(N·B)) Σ_b Σ_c s_c(x_b) Σ_l Σ_m (‖U_{c,l,:,m}‖² ‖V_{c,l,m,:}‖² + ε)^{p/2}`.

    Args:
      components: `{site: Factors}`.
      active_counts: [C], number of examples of the batch on which each component is active.
      p: Schatten power, in (0, 2].
      uses: number of uses of each site in a pass.
      batch_size: B.
    """
    total = num_weights(components, uses) * batch_size
    counts = active_counts.astype(jnp.float32)
    terms = (
        uses[site] * jnp.sum(spread(counts, norms.ndim) * (norms + EPSILON) ** (p / 2))
        for site, norms in rank_one_norms(components).items()
    )
    return total_of(terms) / total


def scale_free_simplicity(
    components: Components,
    active_counts: jax.Array,
    *,
    p: float,
    uses: dict[str, float],
    batch_size: int | jax.Array,
) -> jax.Array:
    """Schatten-p norms of the active components over their Frobenius norms.

    `(1/B) Σ_b Σ_c s_c(x_b) Σ_l Σ_m (‖U_{c,l,:,m}‖² ‖V_{c,l,m,:}‖² + ε)^{p/2} / ‖P_c‖^p` with
    `‖P_c‖² = Σ_l ‖P_{c,l}‖² + ε`. Scaling a component does not change its loss, which falls only
    with the number of its singular values and sites: it is 1 for a component of rank one at one
    site, and `n^{1−p/2}` for n equal singular values.

    Args:
      components, active_counts, p, uses, batch_size: see `simplicity`.
    """
    schatten, squares = jnp.float32(0), jnp.float32(0)
    for site, norms in rank_one_norms(components).items():
        axes = tuple(range(1, norms.ndim))
        schatten = schatten + uses[site] * jnp.sum((norms + EPSILON) ** (p / 2), axis=axes)
        squares = squares + uses[site] * components[site].squared_norms()
    ratios = schatten / (jnp.maximum(squares, 0) + EPSILON) ** (p / 2)
    return jnp.sum(active_counts.astype(jnp.float32) * ratios) / batch_size


def num_weights(components: Components, uses: dict[str, float]) -> float:
    """N, a matrix as often as it is used."""
    total = 0.0
    for site, factors in components.items():
        blocks = factors.reads.shape[1] if factors.stacked else 1
        total += blocks * factors.reads.shape[-1] * factors.writes.shape[-1] * uses[site]
    return total


def hidden_activations(
    records: Records,
    target_records: Records,
    sites: Iterable[str],
    activation: str,
    uses: Literal["all", "first"] = "all",
    valid: Valid = None,
) -> jax.Array:
    """Reconstruction of hidden activations, `mean_b (Σ_l ‖a_l(κ) − a_l(θ*)‖²) / Σ_l dim(a_l)`.

    Args:
      records: input and output rows of the sites in the pass with the active components.
      target_records: input and output rows of the sites in the target's pass.
      sites: names of the sites whose outputs are compared.
      activation: `"relu"`, `"gelu"` or `"identity"`, applied to a site's output (before the bias).
      uses: compare all uses of these sites, or the first of each.
      valid: bool [B] or [B, T], the examples or positions that the mean is over; None for all.

    Raises:
      UserError: rows of a site without the positions that `valid` has.
    """
    act = activation_function(activation)
    chosen = set(sites)
    keys = [(s, use) for s, use in target_records if s in chosen and (uses == "all" or use == 0)]
    if valid is None:
        squares = [
            _squared_difference(act(records[key].flat_y()), act(target_records[key].flat_y()))
            for key in keys
        ]
        widths = sum(s.shape[1] for s in squares)
        return total_of(jnp.sum(jnp.mean(s, axis=0)) for s in squares) / widths
    total, width = jnp.float32(0), 0
    for key in keys:
        ours, theirs = records[key].y, target_records[key].y
        # Rows of a stack end in block and width.
        own = 2 if target_records[key].placement.stacked else 1
        counted = validity.of_site_rows(valid, theirs.shape[: theirs.ndim - own], key[0])
        counted = spread(counted, theirs.ndim)
        ours, theirs = (jnp.where(counted, y, 0.0) for y in (ours, theirs))
        size = math.prod(theirs.shape[theirs.ndim - own :])
        total += size * validity.mean(_squared_difference(act(ours), act(theirs)), counted)
        width += size
    return total / width


def activation_function(name: str):
    """The nonlinearity called `name`: ReLU, exact GELU, or none.

    Raises:
      UserError: another name.
    """
    functions = {
        "relu": jax.nn.relu,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "identity": lambda x: x,
    }
    if name not in functions:
        raise UserError(f"activation must be one of {sorted(functions)}, got {name!r}")
    return functions[name]


def _squared_difference(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    return jnp.square(widened(ours) - widened(theirs))


def total_of(values: Iterable[jax.Array]) -> jax.Array:
    """`sum` of at least one array, whose type allows for none."""
    return cast(jax.Array, sum(values))
