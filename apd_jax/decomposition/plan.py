"""The memory and operations that a decomposition needs, before anything runs.

Letters: B batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax import sites
from apd_jax.config_fields import check_keywords, from_mapping
from apd_jax.config_fields.values import whole
from apd_jax.data import SampleBatch, as_source
from apd_jax.decomposition.checks import check_positions, output_shape
from apd_jax.decomposition.logits import gives_logits_of_tokens
from apd_jax.errors import UserError
from apd_jax.programs.jax_settings import own_settings
from apd_jax.sites import PyTree, Target
from apd_jax.sites.given_arrays import as_arrays
from apd_jax.sites.program import trace
from apd_jax.training import presets
from apd_jax.training.config import Settings
from apd_jax.training.requirements import Requirements, requirements


@own_settings()
def plan(
    target: Target,
    x: PyTree | SampleBatch,
    *,
    num_components: int,
    topk: float | None = 1.0,
    restarts: int = 1,
    mesh: Sequence[int] | None = None,
    compile: bool = True,
    **options: Any,
) -> Requirements:
    """Count what `decompose` with these arguments needs on each device, before anything runs.

    Args:
      target: the network and its sites; parameters may be shapes (`jax.ShapeDtypeStruct`), so that
        no memory is needed.
      x: a few inputs [N, ...] or their shapes; or a sampling function `(key, batch_size) -> x`.
      num_components: C.
      topk: active components per example on average; None for the Lp objective.
      restarts: number of initialisations side by side.
      mesh: devices along restarts, data and components; see `decompose`.
      compile: whether to compile the step, which takes as long as at the start of the training.
        Without it, the total is counted from shapes, and collectives are unknown.
      **options: `rank`, `batch_size` and any other setting, as in `decompose`.

    Returns:
      The `Requirements`: bytes by kind, peak bytes, operations and collectives of a step, and
      whether the peak fits the memory; `print` shows a table.

    Raises:
      UserError: a setting out of its range, an unusable network, or a mesh that does not fit.
    """
    check_keywords(plan, Settings(), options)
    given = {"num_components": num_components, "topk": topk} | options
    sites.check_is_target(target)
    example = _example(x)
    target.at(example)
    trace(target.apply_fn, target.params, example)  # says so where its sites are known, x is new
    base = presets.base(given, logits=gives_logits_of_tokens(target, example))
    settings, restarts = from_mapping(base, given), whole("restarts", restarts)
    if "attribution_mode" not in options:
        settings = presets.with_exact_scores(settings, output_shape(target, example))
    # Within a trace, as parameters may be shapes.
    jax.eval_shape(lambda target, x: check_positions(target, x, settings), target, example)
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((restarts, *jnp.shape(leaf)), jnp.result_type(leaf)),
        target,
    )
    source = as_source(x if callable(x) else _like(example))
    if source.feeds:
        raise UserError(f"x must be inputs, their shapes or a sampling function, got {x!r:.100}")
    return requirements(settings, targets, source, mesh_shape=mesh, compile=compile)


def _example(x: PyTree | SampleBatch) -> PyTree:
    """Shapes of three inputs."""
    if callable(x):
        try:
            x = jax.eval_shape(lambda key: x(key, 3), jax.random.key(0))
        except Exception as error:  # whatever the function says
            raise UserError(
                "x must be inputs or a sampling function (key, batch_size) -> x, which fails "
                f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]:.300})"
            ) from error
    x = as_arrays(x)
    for leaf in jax.tree.leaves(x):
        if not getattr(leaf, "shape", ()) or not hasattr(leaf, "dtype"):
            raise UserError(
                "x must be arrays [N, ...] or their shapes, or a sampling function (key, "
                f"batch_size) -> x, got {leaf!r:.100}"
            )
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape[1:]), leaf.dtype), x)


def _like(example: PyTree) -> SampleBatch:
    """A sampling function of inputs with these shapes."""

    def sample(key: jax.Array, batch_size: int) -> PyTree:
        def one(leaf):
            shape = (batch_size, *leaf.shape[1:])
            bits = jax.random.bits(key, shape)
            # Any values will do, as nothing runs; a constant would change the compiled program.
            return (bits & 1).astype(leaf.dtype)

        return jax.tree.map(one, example)

    return sample
