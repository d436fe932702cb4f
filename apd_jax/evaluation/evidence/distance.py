"""Distances of outputs from the target's, as sums over each example, and means of these.

A distance is a ratio `d = Σ_b e_b / Σ_b w_b` over examples: for logits e is the KL divergence in
nats and w counts the rows; else e is the squared difference and w the square of the target's
outputs, which is the squared error of a zero output.
Letters: B examples, T positions, K classes.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax.errors import UserError
from apd_jax.evaluation.evidence.parts import Parts, run
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.objective.losses import kl_each
from apd_jax.programs.compiled import jit_with_network
from apd_jax.programs.widened import widened
from apd_jax.sites import PyTree, Target

Kind = Literal["kl", "mse"]
_ALL_ZERO = (
    "the network's outputs are 0 on all examples: components have nothing to explain, and their "
    "error has no unit"
)


class Number(NamedTuple):
    """A measured number and its standard error, None where it is no mean over several examples."""

    value: float
    se: float | None = None


class Sums(NamedTuple):
    """Sums over each example of a block.

    Attributes:
      error: [B] e.
      unit: [B] w.
      cross_entropy: [B] sum over the labels of an example, in nats; None without labels.
      labels: [B] how many labels these are.
    """

    error: jax.Array
    unit: jax.Array
    cross_entropy: jax.Array | None = None
    labels: jax.Array | None = None


def kind_of(minimality_loss: Any) -> Kind:
    """KL where the training minimises it, else squared error."""
    return "kl" if minimality_loss == "kl" else "mse"


def compare(kind: Kind, outputs: PyTree, block: Examples) -> Sums:
    """Sums of the distance between outputs and the target's, and of the cross entropy."""
    targets = block.outputs
    counts = jnp.asarray(block.counts)
    if kind == "kl":
        error, unit = _total(counts, kl_each(outputs, targets), jnp.mean), _summed(counts)
    else:
        zero = jnp.zeros(len(counts))
        leaves = ([widened(leaf) for leaf in jax.tree.leaves(tree)] for tree in (outputs, targets))
        pairs = list(zip(*leaves, strict=True))
        error = sum((_total(counts, jnp.square(a - b), jnp.sum) for a, b in pairs), zero)
        unit = sum((_total(counts, jnp.square(b), jnp.sum) for _, b in pairs), zero)
    if block.labels is None or block.label_counts is None:
        return Sums(error, unit)
    label_counts = jnp.asarray(block.label_counts)
    loss = _cross_entropy(jax.tree.leaves(outputs)[0], block.labels)
    loss = jnp.where(label_counts > 0, loss, 0.0)  # 0 · NaN is NaN, and label_counts are 0 or 1
    return Sums(error, unit, _summed(loss), _summed(label_counts))


def _summed(values: jax.Array) -> jax.Array:
    """Sum over all axes but the first: [B, ...] to [B]."""
    return values.reshape(len(values), -1).sum(axis=1)


def _total(counts: jax.Array, values: jax.Array, reduce: Any) -> jax.Array:
    """Sum over an example of the rows that count, each row's values reduced to one number."""
    if values.shape[: counts.ndim] != counts.shape:
        raise UserError(
            f"valid says what counts by position, {counts.shape}; an output has shape "
            f"{values.shape}, expected [N, T, ...]"
        )
    rows = values.astype(jnp.float32).reshape(*counts.shape, -1)
    rows = jnp.where(counts > 0, reduce(rows, axis=-1), 0.0)
    return _summed(rows)


def _log_probabilities(logits: jax.Array) -> jax.Array:
    """Log probabilities of logits [B, ..., K]; one logit means the two classes of a sigmoid."""
    logits = widened(logits)
    if logits.ndim == 1 or logits.shape[-1] == 1:
        logits = logits if logits.ndim == 1 else logits[..., 0]
        return jax.nn.log_sigmoid(jnp.stack([-logits, logits], axis=-1))
    return jax.nn.log_softmax(logits, axis=-1)


def _cross_entropy(logits: jax.Array, labels: np.ndarray) -> jax.Array:
    return -jnp.take_along_axis(_log_probabilities(logits), labels[..., None], axis=-1)[..., 0]


@jit_with_network(static=1)
@jax.default_matmul_precision("highest")
def of_mask(kind: Kind, target: Target, parts: Parts, block: Examples, mask: jax.Array) -> Sums:
    """Sums with the parts scaled by a mask [B, (T), C], float32."""
    return compare(kind, run(target, parts, block.x, mask), block)


@jit_with_network(static=1)
@jax.default_matmul_precision("highest")
def of_weights(kind: Kind, target: Target, weights: dict[str, jax.Array], block: Examples) -> Sums:
    """Sums with other matrices at the sites."""
    return compare(kind, target.with_weights(weights)(block.x), block)


@jit_with_network(static=1)
def of_itself(kind: Kind, _: Target, block: Examples) -> Sums:
    """Sums of the target's own outputs: its cross entropy."""
    return compare(kind, block.outputs, block)


@jit_with_network
@jax.default_matmul_precision("highest")
def outputs(target: Target, x: PyTree) -> PyTree:
    """The target's outputs on a block."""
    return target(x)


def check_finite(kind: Kind, block: Examples) -> None:
    """Raise UserError where outputs that count are no numbers; logits may be −∞."""
    broken = np.zeros(len(block.counts), bool)
    for leaf in map(np.asarray, jax.tree.leaves(block.outputs)):
        bad = np.isnan(leaf) | np.isposinf(leaf) if kind == "kl" else ~np.isfinite(leaf)
        counts = block.counts.reshape(block.counts.shape + (1,) * (leaf.ndim - block.counts.ndim))
        broken |= (bad & (counts > 0)).reshape(len(broken), -1).any(axis=1)
    if broken.any():
        raise UserError(
            f"the network returns NaN or infinity on {broken.sum()} of the {len(broken)} examples "
            "of a batch: leave these examples out, or exclude such outputs with valid="
        )


def check_some_output(kind: Kind, target: Target, blocks: Iterable[Examples]) -> None:
    """Raise UserError where all outputs that count are 0: their squared error has no unit.

    Blocks are run up to the first with another output, usually one.
    """
    for block in blocks if kind == "mse" else ():
        block = block._replace(outputs=outputs(target, block.x))
        if np.asarray(of_itself(kind, target, block.without_labels()).unit).any():
            return
    if kind == "mse":
        raise UserError(_ALL_ZERO)


def ratio(error: np.ndarray, unit: np.ndarray, groups: np.ndarray | None = None) -> Number:
    """`Σ e / Σ w` and its standard error, the examples (or groups of them) drawn independently.

    `SE = sqrt( n/(n−1) Σ (e_i − d w_i)² ) / Σ w`, over the n with any weight; none for n = 1, and
    for a ratio that is not finite.

    Raises:
      UserError: the weights are all 0, as the squares of outputs that are 0, but errors are not.
    """
    error, unit = np.asarray(error, np.float64), np.asarray(unit, np.float64)
    total = unit.sum()
    if not total and error.any():
        raise UserError(_ALL_ZERO)
    value = float(error.sum() / total) if total else 0.0
    if not np.isfinite(value):
        return Number(value)
    if groups is not None:
        _, groups = np.unique(groups, return_inverse=True)
        error, unit = (np.bincount(groups, weights=a) for a in (error, unit))
    rest = error - value * unit
    count = int(np.count_nonzero((unit != 0) | (error != 0)))
    if count < 2:
        return Number(value)
    deviation = np.sqrt(count / (count - 1) * np.sum(rest**2))
    return Number(value, float(deviation / abs(total)) if total else 0.0)
