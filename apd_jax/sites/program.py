"""Programs: a network traced at the shapes of some inputs, and what is known of its sites there.

Letters: B batch, T positions, R row axes of a use, G stacked blocks.
"""

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from apd_jax.errors import UserError
from apd_jax.programs.compiled import kept_with
from apd_jax.programs.equations import equations
from apd_jax.sites.custom_derivatives import keeps_derivative
from apd_jax.sites.interpreter import Interpreter
from apd_jax.sites.layout import NoMatrix, Placement, Site, find_layout
from apd_jax.sites.leaf_names import leaf_names
from apd_jax.sites.uses import LinearUse

PyTree = Any
# Flax's and Equinox's words for a module in training mode.
_TRAINING = re.compile("InvalidRngError|ModifyScopeVariableError|in non-deterministic mode")
_INFERENCE = (
    "; the network must not draw random numbers or change its statistics: give from_flax the "
    "module's keyword, such as train=False or deterministic=True, or use "
    "eqx.nn.inference_mode(model)"
)


class Left(NamedTuple):
    """A leaf that is no site: its path, shape, and why; `linear` where it has linear uses too."""

    path: str
    shape: tuple[int, ...]
    reason: str
    linear: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A traced network.

    Attributes:
      closed: the program of all leaves and inputs.
      out_tree: structure of its outputs.
      sites: every matrix that can be decomposed, by name, in the order of the leaves.
      left: the leaves that are no sites.
      placements: for every leaf with sites its uses, in order.
      row_shapes: sizes R for the same uses.
    """

    closed: core.ClosedJaxpr
    out_tree: Any
    sites: dict[str, Site]
    left: tuple[Left, ...]
    placements: dict[int, list[Placement]]
    row_shapes: dict[int, list[tuple[int, ...]]]

    @property
    def convolves(self) -> bool:
        """Whether there is a convolution, of whatever arrays."""
        found = (eqn.primitive.name for eqn in equations(self.closed.jaxpr))
        return "conv_general_dilated" in found

    def outputs(self) -> PyTree:
        """Shapes and dtypes of the outputs."""
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self.closed.out_avals]
        return jax.tree.unflatten(self.out_tree, shapes)


def abstract(tree: PyTree) -> PyTree:
    """Shapes and dtypes of a pytree of arrays.

    Raises:
      UserError: a leaf that JAX takes for no array of numbers.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        try:
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        except (TypeError, ValueError) as error:
            raise UserError(
                "inputs and parameters must be arrays of numbers of JAX or NumPy, got a "
                f"{type(leaf).__name__}: give np.asarray(...) of it, in numbers"
            ) from error

    return jax.tree.map(one, tree)


ONE_EXAMPLE = (
    "the inputs look like a single example, without the batch axis in front: give batches "
    "[B, ...]. numpy.stack(list(examples)) makes a batch of a list or an iterator of single "
    "examples, and x[None] makes one of a single example x"
)


def takes_batches_of(apply_fn: Callable, params: PyTree, x: PyTree) -> bool:
    """Whether the network runs on inputs like `x` with one axis more, and gives it back in front.

    It is tried with 997 examples, a number that no other axis is likely to have.
    """
    more = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((997, *leaf.shape), leaf.dtype), x)
    try:
        outputs = jax.eval_shape(apply_fn, params, more)
    except Exception:  # whatever a network says to a shape that it was not written for
        return False
    leaves = jax.tree.leaves(outputs)
    return bool(leaves) and all(leaf.shape[:1] == (997,) for leaf in leaves)


class _Uncached(Exception):
    """Carries a program that holds values of an outer trace, and must not outlive it."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program


def trace(apply_fn: Callable, params: PyTree, x: PyTree) -> Program:
    """The program of a network at the shapes of `params` and `x`, and its sites.

    Raises:
      UserError: `apply_fn` can't be traced at these shapes.
    """
    leaves, params_tree = jax.tree.flatten(abstract(params))
    inputs, inputs_tree = jax.tree.flatten(abstract(x))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in (*leaves, *inputs))
    try:
        return kept_with(apply_fn, _trace, params_tree, inputs_tree, shapes, ambient())
    except _Uncached as holder:
        return holder.program


def ambient() -> tuple[Any, ...]:
    """Precision, width of numbers and mesh: equations get them when they are traced."""
    config: Any = jax.config  # whose types omit the settings
    mesh = jax.sharding.get_abstract_mesh()
    return config.jax_default_matmul_precision, config.jax_enable_x64, mesh


def _trace(stand_in, params_tree, inputs_tree, shapes, _) -> Program:
    apply_fn = stand_in.function
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params = jax.tree.unflatten(params_tree, structs[: params_tree.num_leaves])
    x = jax.tree.unflatten(inputs_tree, structs[params_tree.num_leaves :])
    try:
        closed, outputs = jax.make_jaxpr(apply_fn, return_shape=True)(params, x)
    except Exception as error:  # whatever a network says to inputs that it does not take
        given = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(x)]
        reason = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {reason}"
        hint = _INFERENCE if _TRAINING.search(reason) else ""
        if takes_batches_of(apply_fn, params, x):
            hint = f"; {ONE_EXAMPLE}"
        raise UserError(
            f"the network fails on inputs {', '.join(given)} ({reason}){hint}"
        ) from error
    uses, others = _all_uses(closed, structs, params_tree.num_leaves)
    sites: dict[str, Site] = {}
    left: list[Left] = []
    placements: dict[int, list[Placement]] = {}
    # Not strict: the inputs follow the leaves.
    for number, (path, leaf) in enumerate(zip(leaf_names(params), structs, strict=False)):
        reason = _why_not(leaf, uses[number], others[number])
        if not reason:
            try:
                found, placements[number] = find_layout(path, number, leaf.shape, uses[number])
                sites |= {site.name: site for site in found}
            except NoMatrix as error:
                reason = str(error)
        if reason:
            left.append(Left(path, leaf.shape, reason, bool(uses[number])))
    rows = {number: [use.row_shape for use in uses[number]] for number in placements}
    program = Program(closed, jax.tree.structure(outputs), sites, tuple(left), placements, rows)
    if any(isinstance(const, jax.core.Tracer) for const in closed.consts):
        raise _Uncached(program)
    return program


def _why_not(leaf, uses: list[LinearUse], others: list[str]) -> str:
    """Why a leaf is no site; empty where it is one."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return (
            f"its numbers are {leaf.dtype}, not real; give the network the real and the imaginary "
            "part as two parameters, and multiply by each: x (R + iI) is x @ R and x @ I"
        )
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return f"its numbers are {leaf.dtype}, not real"
    if 0 in leaf.shape:
        return "it has no numbers"
    if others:
        return others[0]
    return "" if uses else "the outputs don't depend on it"


def _all_uses(closed, structs, num_leaves: int):
    """Linear uses and other uses of every leaf."""
    uses: dict[int, list[LinearUse]] = collections.defaultdict(list)
    others: dict[int, list[str]] = collections.defaultdict(list)

    def on_use(use, as_is):
        # The functions of a use hold tracers, which must not outlive this trace in a cache.
        nothing = dict.fromkeys(("to_rows", "from_rows", "settle"))
        uses[use.view.leaf].append(dataclasses.replace(use, **nothing))
        return as_is()

    def on_other(leaf, reason):
        others[leaf].append(reason)

    interpreter = Interpreter(on_use, on_other, keeps_derivative)
    jax.eval_shape(
        lambda *arrays: interpreter.run(
            closed, arrays[:num_leaves], arrays[num_leaves:], range(num_leaves)
        ),
        *structs,
    )
    return uses, others
