"""How well outputs fit labels: classes or values.

Letters: N examples, T positions, K classes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import validity
from apd_jax.data.tokens import tokens_of
from apd_jax.errors import UserError, about
from apd_jax.objective.objective import Objective
from apd_jax.programs.axes import spread
from apd_jax.sites import PyTree, Target
from apd_jax.sites.given_arrays import as_numpy

NEXT_TOKENS = "next_tokens"


def quality_name(labels: Any) -> str:
    """Name of the measure that labels allow; empty without labels."""
    if labels is None:
        return ""
    return "accuracy" if are_classes(np.asarray(labels)) else "MSE to labels"


def label_array(target: Target, x: PyTree, labels: Any, objective: Objective | None = None) -> Any:
    """Labels as an array, with those that `"next_tokens"` stands for; None if there are none.

    Masked classes become -1, which is ignored.

    Args:
      target: the network.
      x: [N, ...] inputs.
      labels: classes, values, `"next_tokens"` or None.
      objective: its `valid` says which tokens count; None where all do.

    Raises:
      UserError: labels that are no numbers.
    """
    if labels is None:
        return None
    if isinstance(labels, str):
        found = next_tokens(target, x, labels)
        return found if objective is None else _of_counted(objective, x, found)
    if isinstance(labels, np.ma.MaskedArray) and labels.dtype.kind in "iu":
        return np.ma.filled(labels.astype(np.int64), -1)
    if isinstance(labels, Mapping):
        raise UserError(f"labels must be one array, got a dict of {sorted(map(str, labels))}")
    with about("labels"):
        return as_numpy(labels)


def next_tokens(target: Target, x: PyTree, name: str = NEXT_TOKENS) -> np.ndarray:
    """The token at position t + 1 as the label of position t, int32 [N, T]; -1 at the last.

    Args:
      target: a network with logits [N, T, V].
      x: tokens [N, T], alone or beside other inputs, such as a mask of padding.
      name: what was given as labels.

    Raises:
      UserError: another name, or no such network or inputs.
    """
    tokens = tokens_of(x)
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(target, x))]
    logits = len(shapes) == 1 and len(shapes[0]) == 3
    if name != NEXT_TOKENS or not logits or tokens is None or tokens.shape != shapes[0][:2]:
        raise UserError(
            f"labels={name!r}: expected classes, values, or {NEXT_TOKENS!r}, for which an input "
            f"must be tokens [N, T] and the one output logits [N, T, V]; outputs are {shapes}"
        )
    labels = np.roll(tokens, -1, axis=1).astype(np.int32)
    labels[:, -1] = -1
    return labels


def _of_counted(objective: Objective, x: PyTree, labels: np.ndarray) -> np.ndarray:
    """Next tokens [N, T], -1 where a position or the one after it does not count."""
    valid = objective.counted(jax.tree.map(jnp.asarray, x))
    if valid is None:
        return labels
    here = np.asarray(validity.of_rows(valid, labels.shape))
    return np.where(here & np.roll(here, -1, axis=1), labels, -1)


def num_ignored(labels: Any) -> int:
    """Number of labels that mean no class: negative ones, such as -100 for padding."""
    labels = np.asarray(labels)
    return int(np.sum(labels < 0)) if labels.dtype.kind == "i" else 0


def check_labels(labels: np.ndarray, shape: tuple[int, ...], arrays: int = 1) -> None:
    """Raise UserError unless labels fit outputs.

    Args:
      labels: classes or values.
      shape: shape of the outputs of all examples.
      arrays: number of arrays that the network returns.
    """
    if not (labels.dtype.kind in "iub" or jnp.issubdtype(labels.dtype, jnp.floating)):
        raise UserError(
            f"labels must be numbers, classes or values, got {labels.dtype}: number the classes "
            "from 0, np.unique(labels, return_inverse=True)[1], or give labels.astype(int) where "
            "they are such numbers already"
        )
    bad = int(np.sum(~np.isfinite(labels)))
    if bad:
        raise UserError(
            f"{bad} of {labels.size} labels are NaN or infinite: leave these examples out, or give "
            "classes, of which negative ones are ignored"
        )
    logits = shape if len(shape) > 1 else (*shape, 1)
    classes = are_classes(labels)
    if arrays > 1 or labels.shape != (logits[:-1] if classes else shape):
        raise UserError(
            f"labels have shape {labels.shape} and type {labels.dtype}; expected whole numbers "
            f"{logits[:-1]} for classes, or values {shape}, for one array of outputs"
            f"{_way_out(labels, logits)}"
        )
    if labels.dtype == bool and logits[-1] > 2:
        raise UserError(
            f"labels are True and False, but the outputs have {logits[-1]} classes, counted from 0 "
            f"to {logits[-1] - 1}: give their numbers"
        )
    if classes:
        _check_classes(labels, logits[-1])


def _way_out(labels: np.ndarray, logits: tuple[int, ...]) -> str:
    """What makes classes of labels that are classes in another form, or nothing."""
    if labels.shape == logits[:-1]:
        return ": for classes give labels.astype(int)"
    if labels.shape == logits and logits[-1] > 1:
        return ": for classes in one-hot form give labels.argmax(-1)"
    if labels.shape == (*logits[:-1], 1):
        return ": for classes give labels[..., 0].astype(int)"
    return ""


def quality_parts(
    values: np.ndarray, labels: np.ndarray, counted: np.ndarray | None = None
) -> tuple[float, float]:
    """Sum and number of the hits, for classes, or of the squared errors, for values.

    Classes are whole numbers from 0 to K - 1. Negative labels are ignored. Outputs [B] or [B, 1]
    are the logit of class 1 against class 0.

    Args:
      values: outputs of a block: logits [B, (T,) K], or values [B, ...].
      labels: classes or values of its examples.
      counted: bool [B] or [B, T], which of them count; None for all.
    """
    here = np.ones(labels.shape, bool)
    if counted is not None:
        here &= spread(counted, labels.ndim)
    if not are_classes(labels):
        errors = values[here].astype(np.float64) - labels[here]
        return float(np.sum(errors**2)), float(here.sum())
    logits = values[:, None] if values.ndim == 1 else values
    labels = labels.astype(np.int64)
    chosen = logits[..., 0] > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1)
    here &= labels >= 0
    return float(np.sum(chosen[here] == labels[here])), float(here.sum())


def cross_entropy_parts(
    values: np.ndarray, labels: np.ndarray, counted: np.ndarray | None = None
) -> tuple[float, float]:
    """Sum in nats, and number, of what the cross entropy is the mean of; zeros without classes."""
    if not are_classes(labels):
        return 0.0, 0.0
    logits = (values[:, None] if values.ndim == 1 else values).astype(np.float64)
    if logits.shape[-1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=-1)
    here = labels >= 0
    if counted is not None:
        here = here & spread(counted, labels.ndim)
    chosen = np.take_along_axis(logits, np.maximum(labels, 0).astype(np.int64)[..., None], axis=-1)
    losses = np.logaddexp.reduce(logits, axis=-1) - chosen[..., 0]
    return float(losses[here].sum()), float(here.sum())


def are_classes(labels: np.ndarray) -> bool:
    """Whether labels are classes: whole numbers."""
    return labels.dtype.kind in "iub"


def _check_classes(labels: np.ndarray, num_logits: int) -> None:
    """Raise UserError where a label is no class of the outputs, or none is."""
    largest = int(labels.max())
    if num_logits == 1 and np.all(np.abs(labels) == 1) and labels.min() < 0:
        raise UserError(
            "labels are -1 and +1, but a single logit tells class 1 from class 0: use 0 and 1, "
            "(labels > 0).astype(int)"
        )
    if largest >= max(num_logits, 2):
        raise UserError(
            f"labels contain class {largest}, but the outputs have {max(num_logits, 2)} classes, "
            f"counted from 0 to {max(num_logits, 2) - 1}; a label of -1 is ignored"
        )
    if largest < 0:
        raise UserError(
            f"all {labels.size} labels are negative and therefore ignored; expected some classes "
            f"from 0 to {max(num_logits, 2) - 1}"
        )
