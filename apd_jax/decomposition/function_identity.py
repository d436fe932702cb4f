"""Check that a function is the saved one, by its outputs on a few saved examples.

Functions are code, which is not saved, and their names don't tell them apart.
Letters: B batch, O outputs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apd_jax import validity
from apd_jax.attribution.metrics import Metric, quantities
from apd_jax.objective.distances import distance
from apd_jax.programs.compiled import jit_with_network
from apd_jax.sites import PyTree, Target


def given(
    target: Target,
    x: PyTree,
    metric: Metric = "rms",
    minimality_loss: str | Callable = "mse",
    valid: Callable | None = None,
) -> dict[str, jax.Array]:
    """What the network gives on examples, and what functions make of that.

    Args:
      target: the network.
      x: [B, ...] inputs.
      metric, minimality_loss, valid: functions of the objective; one that is chosen by name, or
        None, is left out.

    Returns:
      `"network"`, the outputs [B, O]; `"metric"`, what it measures of them; `"minimality_loss"`,
      the mean distance of half the outputs of other examples from them; `"valid"`, which of the
      examples or positions count. All float32.
    """
    return _given(metric, minimality_loss, valid, target, x)


@jit_with_network(static=3)
@jax.default_matmul_precision("highest")
def _given(metric, minimality_loss, valid, target, x):
    outputs = target(x)
    found: dict[str, Any] = {"network": quantities("rms", outputs)}
    if callable(metric):
        found["metric"] = quantities(metric, outputs)
    if callable(minimality_loss):
        others = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0) / 2, outputs)
        counted = validity.of_batch(valid, x)
        found["minimality_loss"] = distance(minimality_loss, others, outputs, counted)
    if valid is not None:
        found["valid"] = validity.of_batch(valid, x)
    return {name: value.astype(jnp.float32) for name, value in found.items()}


def difference(found: Any, expected: Any, tolerance: float) -> str:
    """How an array differs from the one that was kept, in words; empty where it does not.

    Args:
      found: an array.
      expected: the array that was kept.
      tolerance: allowed difference relative to the largest number; whole numbers must be equal.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return (
            f"it gives {found.dtype}{list(found.shape)}, but the kept values are "
            f"{expected.dtype}{list(expected.shape)}"
        )
    if np.array_equal(found, expected):
        return ""
    if jnp.issubdtype(found.dtype, jnp.inexact):
        wide = np.complex128 if jnp.iscomplexobj(found) else np.float64
        a, b = found.astype(wide), expected.astype(wide)
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        if np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return ""
    return f"it gives {np.ravel(found)[:4]}, but the kept values are {np.ravel(expected)[:4]}"
