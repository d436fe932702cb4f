"""What a training needs: memory by kind, operations and communication of a step, on each device.

Counted from shapes; the total also from the compiled step. Nothing is run, and parameters may be
abstract. Letters: S trainings side by side, B batch, C components.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from apd_jax.components import init_components
from apd_jax.data import Source
from apd_jax.objective.coefficients import CONSTANT
from apd_jax.programs import counts
from apd_jax.runtime import memory, mesh, step_programs
from apd_jax.sites import PyTree, Target
from apd_jax.training import trainer
from apd_jax.training.config import Settings

_KINDS = {
    "parameters": "the target's parameters",
    "factors": "factors of the components",
    "moments": "state of the optimiser, with its bases",
    "other_state": "rounds of refinement, scales, counters",
    "batch": "inputs of a step",
    "gradient": "gradient of the factors",
    "tangents": "attributions: the target's pass and the tangents",
    "masked_pass": "losses: passes with masks, kept for the gradient",
}


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What a training needs on each device.

    Attributes:
      kinds: bytes by kind, counted from shapes: `parameters`, `factors`, `moments`, `other_state`,
        `batch`, `gradient`, `tangents`, `masked_pass`. The first five are exact. The others are
        peaks of the traced program, see `counts.peak_bytes`.
      counted: peak bytes, counted from shapes: the first five kinds, and the larger of `tangents`
        and `gradient` + `masked_pass`, which are not needed at the same time.
      compiled: peak bytes of the compiled step, by its `memory_analysis`; None if not compiled.
      operations: floating-point operations of the matrix products of a step.
      collectives: `{kind: (number, bytes)}` of a step, of the compiled program; None if not
        compiled, empty on one device.
      available: bytes of memory of a device; None if unknown.
      devices: number of devices.
    """

    kinds: dict[str, int]
    counted: int
    compiled: int | None
    operations: int
    collectives: dict[str, tuple[int, int]] | None
    available: int | None
    devices: int

    @property
    def total(self) -> int:
        """Peak bytes: of the compiled step if there is one, else counted from shapes."""
        return self.counted if self.compiled is None else self.compiled

    @property
    def fits(self) -> bool | None:
        """Whether the total is available; None if that is not known."""
        return None if self.available is None else self.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """All numbers, flat: `bytes_<kind>`, `bytes_total`, `operations`, `collectives`, ..."""
        return {f"bytes_{kind}": size for kind, size in self.kinds.items()} | {
            "bytes_counted": self.counted,
            "bytes_compiled": self.compiled,
            "bytes_total": self.total,
            "bytes_available": self.available,
            "fits": self.fits,
            "operations": self.operations,
            "collectives": None
            if self.collectives is None
            else {kind: list(pair) for kind, pair in self.collectives.items()},
            "devices": self.devices,
        }

    def __str__(self) -> str:
        each = " on each device" if self.devices > 1 else ""
        lines = [f"What the training needs{each} ({self.devices} device(s)):"]
        rows = [(_size(self.kinds[kind]), words) for kind, words in _KINDS.items()]
        rows.append((_size(self.counted), "peak, counted from shapes"))
        if self.compiled is not None:
            rows.append((_size(self.compiled), "peak, of the compiled step"))
        if self.available is not None:
            rows.append(
                (_size(self.available), f"available: {'fits' if self.fits else 'TOO LITTLE'}")
            )
        rows.append((f"{self.operations:.3g}", "operations of matrix products per step"))
        for kind, (number, size) in (self.collectives or {}).items():
            rows.append((_size(size), f"in {number} {kind} per step"))
        return "\n".join([*lines, *(f"{value:>12}  {words}" for value, words in rows)])


def _size(count: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} B"


def requirements(
    settings: Settings,
    targets: Target,
    source: Source,
    *,
    mesh_shape: Sequence[int] | None = None,
    compile: bool = True,
) -> Requirements:
    """Count what a training needs.

    Only the steps are counted, and not the initialisation, rounds of refinement and evaluation.

    Args:
      settings: the hyperparameters.
      targets: S networks side by side, every leaf of the parameters [S, ...]; shapes are enough.
      source: where batches come from: a sampling function.
      mesh_shape: see `mesh.layout`.
      compile: whether to compile the step, which takes as long as at the start of the training.

    Raises:
      UserError: see `mesh.layout`.
    """
    settings = settings.with_largest_k()
    size = jax.tree.leaves(targets)[0].shape[0]
    layout = trainer.layout_of(settings, size, mesh_shape)
    devices = math.prod(layout.mesh.shape.values()) if layout else 1
    state = _state(settings, targets, source, size)

    def of_state(part):
        return held(part, layout and layout.state(part))

    factors, moments = of_state(state.components), of_state(state.optimizer)
    kinds = {
        "parameters": held(targets, layout and layout.context(targets)),
        "factors": factors,
        "moments": moments,
        "other_state": of_state(state) - factors - moments,
        "gradient": factors,
    } | _of_step(settings, _first(targets), _first(state), source, size, devices)
    kinds = {kind: kinds[kind] for kind in _KINDS}
    lasting = sum(list(kinds.values())[:5])
    step = trainer.make_step(settings, settings.optimizer(), settings.rate(), source)
    keys = jax.eval_shape(jax.vmap(jax.random.key), jnp.zeros(size, jnp.uint32))
    operations = counts.operations(jax.vmap(step), targets, state, keys)
    compiled = collectives = None
    if compile:
        compiled, collectives = _compiled(step, layout, targets, state, size)
    there = memory.total()
    return Requirements(
        kinds,
        lasting + max(kinds["tangents"], kinds["gradient"] + kinds["masked_pass"]),
        compiled,
        operations // devices,
        collectives,
        there and there // jax.local_device_count(),
        devices,
    )


def least_bytes(settings: Settings, targets: Target, source: Source) -> int:
    """A lower bound of the bytes on all devices together, quickly counted from shapes.

    These are parameters, factors, their moments and gradient, and a batch with its scores.

    Args:
      settings, targets, source: see `requirements`.
    """
    size = jax.tree.leaves(targets)[0].shape[0]
    key = jax.eval_shape(lambda: jax.random.key(0))
    # One example: tracing a batch that no memory holds might make constants of its size.
    x = jax.eval_shape(lambda key: source.sample(None, key, 1), key)

    def factors(target, x, key):
        return init_components(
            key, target.at(x), num_components=settings.num_components, rank=settings.rank
        )

    components = jax.eval_shape(factors, _first(targets), x, key)
    row = held(x) + 4 * settings.num_components
    return held(targets) + size * (4 * held(components) + settings.batch_size * row)


def _state(settings: Settings, targets: Target, source: Source, size: int) -> Any:
    """Shapes of the states, [S, ...]."""
    rounds = settings.refine.rounds(settings.steps) > 0
    init = trainer.make_init(settings, settings.optimizer(), source, None, rounds)
    every = jax.vmap(init, in_axes=(0, 0, None))
    return jax.eval_shape(every, targets, jnp.zeros(size, jnp.uint32), None)


def _first(tree: PyTree) -> PyTree:
    """Shapes of a single training."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def held(tree: PyTree, shardings: PyTree | None = None) -> int:
    """Bytes of arrays on a device."""
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.shape for leaf in leaves]
    if shardings is not None:
        placed = zip(jax.tree.leaves(shardings), shapes, strict=True)
        shapes = [sharding.shard_shape(shape) for sharding, shape in placed]
    return sum(math.prod(s) * leaf.dtype.itemsize for s, leaf in zip(shapes, leaves, strict=True))


def _of_step(
    settings: Settings, target: Target, state: Any, source: Source, size: int, devices: int
) -> dict[str, int]:
    """Bytes of the parts of a step, divided evenly over the devices.

    Micro-batches run one after another, so that only one is there at a time.
    """
    objective, key = settings.objective, jax.eval_shape(lambda: jax.random.key(0))
    part = settings.batch_size // settings.accumulate
    x = jax.eval_shape(lambda key: source.sample(None, key, part), key)

    def score(target, components, x, key):
        return objective.attribute(target, components, x, key).scores

    def gradient(target, components, x, key, chosen):
        def total(components):
            terms, _ = objective.terms(target, components, x, key, CONSTANT, chosen)
            return objective.total(terms)

        return jax.grad(total)(components)

    scores = jax.eval_shape(score, target, state.components, x, key)
    chosen = jax.eval_shape(objective.select, scores, x)
    tangents = counts.peak_bytes(score, target, state.components, x, key)
    masked = counts.peak_bytes(gradient, target, state.components, x, key, chosen)
    masked -= min(held(state.components), masked)
    found = {"tangents": tangents, "masked_pass": masked, "batch": settings.accumulate * held(x)}
    return {kind: size * count // devices for kind, count in found.items()}


def _compiled(
    step: Any, layout: mesh.Layout | None, targets: Target, state: Any, size: int
) -> tuple[int, dict[str, tuple[int, int]]]:
    """Peak bytes and collectives of the compiled steps, the program that a training runs."""
    seeds = jax.ShapeDtypeStruct((size,), jnp.uint32)
    targets = mesh.placed(targets, layout and layout.context(targets))
    leaves, tree = jax.tree.flatten(targets)
    states, seeds = (mesh.placed(part, layout and layout.state(part)) for part in (state, seeds))
    # Two steps, as one would be no loop; the number of steps changes nothing else.
    chunk = cast(Any, step_programs.chunk(step, tree))
    program = chunk.lower(2, layout, leaves, states, seeds, None).compile()
    found = program.memory_analysis()
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    total += found.output_size_in_bytes - found.alias_size_in_bytes
    return total, counts.collectives(program.as_text()) if layout else {}
