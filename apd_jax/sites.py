"""Sites: the named linear maps of a network, found while it is traced and replaced in place.

A site is a linear map `y = x W` with a name. Whatever APD does to a network, it does by giving
`run` an operation that computes `y` at every use of every site; the network is not rewritten.
Letters: B batch, d_in / d_out widths of a site, O output width.
"""

import collections
import contextvars
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from apd_jax.errors import UserError

PyTree = Any


class SiteCall(NamedTuple):
    """One use of a site while a network runs.

    Attributes:
      name: the site's name.
      use: how many times this site was used before in the same pass (0 for the first use).
      x: [B, ..., d_in] input of the map; [B, ..., d_out] where `transposed`.
      weight: [d_in, d_out] the matrix as the network holds it.
      transposed: whether the map is `x Wᵀ`, as in a tied decoder.
    """

    name: str
    use: int
    x: jax.Array
    weight: jax.Array
    transposed: bool

    @property
    def key(self) -> tuple[str, int]:
        """What identifies this use within a pass."""
        return self.name, self.use


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SiteRecord:
    """What passed through one use of a site: `x` [B, ..., d_in] and `y` [B, ..., d_out]."""

    x: jax.Array
    y: jax.Array
    name: str = dataclasses.field(metadata={"static": True})
    transposed: bool = dataclasses.field(metadata={"static": True})


Records = dict[tuple[str, int], SiteRecord]
Operation = Callable[[SiteCall], jax.Array]
_handler: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("handler", default=None)


def as_is(call: SiteCall) -> jax.Array:
    """Compute what the network itself computes: `x W`, or `x Wᵀ`."""
    return jnp.matmul(call.x, call.weight.T if call.transposed else call.weight)


def linear(name: str, x: jax.Array, w: jax.Array, *, transpose: bool = False) -> jax.Array:
    """Multiply `x` by a weight matrix that can be decomposed.

    Write `apd_jax.linear("name", x, w)` in the place of `x @ w`; outside of a decomposition it is
    just that. A tied matrix is one name used more than once, with `transpose=True` where the
    network multiplies by `w.T`.

    Args:
      name: the site's name, by default the path of `w` in the parameters (`"layer_0/w"`).
      x: [B, ..., d_in] input; [B, ..., d_out] with `transpose`.
      w: [d_in, d_out] weight matrix.
      transpose: multiply by `w.T` instead of `w`.

    Returns:
      [B, ..., d_out]; [B, ..., d_in] with `transpose`.
    """
    handler = _handler.get()
    if handler is None:
        return as_is(SiteCall(name, 0, x, w, transpose))
    return handler(name, x, w, transpose)


def _intercept_dense(next_fun, args, kwargs, context):
    """Send every call of an `nn.Dense` through `linear`, named by the module's path."""
    module = context.module
    if not isinstance(module, nn.Dense) or context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    params = module.variables["params"]
    x, kernel, bias = nn.dtypes.promote_dtype(
        *args, *kwargs.values(), params["kernel"], params.get("bias"), dtype=module.dtype
    )
    y = linear("/".join(module.path), x, kernel)
    return y if bias is None else y + bias


@dataclasses.dataclass(frozen=True)
class _FlaxApply:
    """`module.apply` with its Dense layers as sites; equal for equal modules, so jit reuses it."""

    module: nn.Module

    def __call__(self, params: PyTree, x: jax.Array) -> jax.Array:
        with nn.intercept_methods(_intercept_dense):
            return self.module.apply({"params": params}, x)


def _lookup(params: PyTree, path: str) -> jax.Array | None:
    """The array at a slash-separated path, or the `kernel` below it; None if there is none."""
    node = params
    for part in path.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node.get("kernel") if isinstance(node, Mapping) else node


def _dense_paths(params: PyTree, prefix: str = "") -> list[str]:
    """Paths of all dictionaries that hold a 2-D `kernel`."""
    found = []
    for name, node in params.items():
        if isinstance(node, Mapping):
            kernel = node.get("kernel")
            if getattr(kernel, "ndim", None) == 2:
                found.append(prefix + name)
            found += _dense_paths(node, f"{prefix}{name}/")
    return found


@jax.tree_util.register_pytree_node_class
class Target:
    """A trained network and the sites that are to be decomposed.

    A pytree whose leaves are the network's parameters, so that targets can be passed through
    `jit` and stacked for `vmap`.

    Attributes:
      apply_fn: `(params, x [B, ...]) -> [B, O]`, a pure function.
      params: the network's parameters, nested dictionaries of arrays.
      sites: names of the decomposed matrices, in order.
      paths: ((site, path of its matrix in `params`), ...).
    """

    def __init__(
        self,
        apply_fn: Callable[[PyTree, jax.Array], jax.Array],
        params: PyTree,
        sites: Sequence[str] | Mapping[str, str],
    ):
        """Declare a network and its sites.

        Args:
          apply_fn: `(params, x) -> output` in which every decomposed product is written
            `apd_jax.linear(name, x, w)`.
          params: its parameters.
          sites: the names used in `linear`. Each is the path of its matrix in `params`
            (`"layer_0/w"`; a `kernel` below the path is found too). Where names and paths differ,
            a mapping from name to path.

        Raises:
          UserError: no site, or a site whose path holds no 2-D matrix.
        """
        if isinstance(sites, str):
            raise UserError(f"sites must be a sequence of names, got the string {sites!r}")
        paths = dict(sites) if isinstance(sites, Mapping) else {name: name for name in sites}
        if not paths:
            raise UserError("sites is empty; name at least one matrix to decompose")
        for name, path in paths.items():
            weight = _lookup(params, path)
            if weight is None or getattr(weight, "ndim", None) != 2:
                raise UserError(
                    f"site {name!r}: params hold no [d_in, d_out] matrix at {path!r}; "
                    f"found {_matrix_paths(params)}"
                )
        self.apply_fn, self.params, self.paths = apply_fn, params, tuple(paths.items())

    @classmethod
    def from_flax(
        cls,
        module: nn.Module,
        variables: PyTree,
        sites: Sequence[str] | Mapping[str, str] | None = None,
    ) -> "Target":
        """Decompose an unmodified Flax Linen module.

        Every `nn.Dense` is a site named by its path (`"encoder/dense_0"`); so is every
        `apd_jax.linear` inside the module.

        Args:
          module: the module; `module.apply(variables, x)` gives [B, O].
          variables: what `module.init` returned, trained. Only `params` may be there.
          sites: which sites to decompose; all `nn.Dense` layers if None. The rest stays fixed.

        Raises:
          UserError: unknown site names, or variables with collections besides `params`.
        """
        if set(variables) != {"params"}:
            raise UserError(
                f"variables must hold the collection 'params' alone, got {sorted(variables)}; "
                "for a module with state use Target(apply_fn, params, sites)"
            )
        params = variables["params"]
        return cls(_FlaxApply(module), params, _dense_paths(params) if sites is None else sites)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the decomposed matrices."""
        return tuple(name for name, _ in self.paths)

    @property
    def weights(self) -> dict[str, jax.Array]:
        """The decomposed matrices θ*, `{site: [d_in, d_out]}`."""
        return {name: _lookup(self.params, path) for name, path in self.paths}

    def __call__(self, x: jax.Array) -> jax.Array:
        """The network's output f(x, θ*), [B, O]."""
        return self.apply_fn(self.params, x)

    def tree_flatten(self):
        return (self.params,), (self.apply_fn, self.paths)

    @classmethod
    def tree_unflatten(cls, static, children):
        target = object.__new__(cls)
        (target.params,), (target.apply_fn, target.paths) = children, static
        return target


def _matrix_paths(params: PyTree) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in leaves
        if getattr(leaf, "ndim", None) == 2
    ]
    return [path.removesuffix("/kernel") for path in paths]


def run(target: Target, x: jax.Array, operation: Operation) -> tuple[jax.Array, Records]:
    """Run the network with `operation` in the place of every declared site.

    Args:
      target: the network.
      x: [B, ...] inputs.
      operation: computes a site's output from a `SiteCall`.

    Returns:
      The network's output [B, O], and what went in and out of every use of a site.

    Raises:
      UserError: a declared site was never used, or with a matrix of another shape, or inside of
        `vmap`, `grad` or `remat`.
    """
    shapes = {name: weight.shape for name, weight in target.weights.items()}
    uses: collections.Counter[str] = collections.Counter()
    records: Records = {}
    trace = core.get_opaque_trace_state(convention="flax")

    def handler(name, site_input, weight, transposed):
        call = SiteCall(name, uses[name], site_input, weight, transposed)
        uses[name] += 1
        if name not in shapes:
            return as_is(call)
        if weight.shape != shapes[name]:
            raise UserError(
                f"site {name!r} multiplies by a matrix of shape {weight.shape}, but params hold "
                f"{shapes[name]} under its path; give Target a mapping from site to path"
            )
        if core.get_opaque_trace_state(convention="flax") != trace:
            raise UserError(
                f"site {name!r} is used inside of a vmap, grad or remat of the network's own; "
                "write the network for a whole batch [B, ...], without them"
            )
        y = operation(call)
        records[call.key] = SiteRecord(site_input, y, name, transposed)
        return y

    token = _handler.set(handler)
    try:
        # Inner jits, scans and remats would trap the recorded values in their own traces.
        with jax.disable_jit():
            output = target.apply_fn(target.params, x)
    finally:
        _handler.reset(token)
    unused = [name for name in shapes if name not in uses]
    if unused:
        raise UserError(f"sites {unused} are never used by the network; it uses {sorted(uses)}")
    return output, records
