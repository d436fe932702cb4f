"""Targets: a trained network, and which of its parameters are decomposed.

Letters: B batch, G stacked blocks, d_in / d_out widths of a site.
"""

import collections
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.sites.adapters import linen
from apd_jax.sites.layout import Site
from apd_jax.sites.program import Left, leaf_paths, trace

PyTree = Any
Selection = str | Sequence[str] | Callable[[str, Any], bool] | None
# Last parts of a path that may be left out where no other leaf is meant.
_ENDINGS = ("/kernel", "/weight", "/w", "/embedding", "/value", ".weight")


class Sites(Mapping[str, Site]):
    """The decomposed sites of a network by name, and the parameters that are left as they are.

    Printed, it is a table. A trailing `/kernel`, `/weight`, `/w`, `/embedding`, `/value` or
    `.weight` of a name may be left out where no other site is meant.

    Attributes:
      left: the other parameters, each with the reason.
    """

    def __init__(self, sites: Sequence[Site], left: Sequence[Left]):
        self._sites = {site.name: site for site in sites}
        self.left = tuple(left)

    def full_name(self, name: str) -> str:
        """The whole name of a site.

        Raises:
          UserError: no site of that name, or several.
        """
        if name in self._sites:
            return name
        found = [full for full in self._sites if _shortened(full) == name]
        if len(found) != 1:
            what = f"several sites are called {name!r}: {found}" if found else f"no site {name!r}"
            raise UserError(f"{what}; the sites are {list(self._sites)}")
        return found[0]

    def __getitem__(self, name: str) -> Site:
        if name in self._sites:
            return self._sites[name]
        try:
            return self._sites[self.full_name(name)]
        except UserError as error:
            raise KeyError(str(error)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __hash__(self) -> int:
        return hash(tuple(self._sites.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __repr__(self) -> str:
        rows = [
            (site.name, " x ".join(map(str, site.shape)), _counted(site.kinds))
            for site in self._sites.values()
        ]
        wide = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
        lines = ["decomposed:"]
        lines += [f"  {name:<{wide[0]}}  {shape:<{wide[1]}}  {kind}" for name, shape, kind in rows]
        lines += ["left as they are:"] if self.left else []
        lines += [f"  {left.path} {list(left.shape)}: {left.reason}" for left in self.left]
        return "\n".join(lines)


@jax.tree_util.register_pytree_node_class
class Target:
    """A trained network and the sites that are to be decomposed.

    A pytree whose leaves are the network's parameters, so that targets can be passed through
    `jit` and stacked for `vmap`.

    Attributes:
      apply_fn: `(params, x) -> outputs`, a pure function; every input and output is [B, ...].
      params: the network's parameters, any pytree of arrays.
    """

    def __init__(
        self,
        apply_fn: Callable[[PyTree, PyTree], PyTree],
        params: PyTree,
        sites: Selection = None,
        *,
        inputs: PyTree | None = None,
    ):
        """Declare a network and what of it is decomposed.

        The parameters are followed through the traced program, whatever it is written in: a leaf
        of which every use is a product, a convolution or a look-up is a site, named by its path
        (`"layer_0/kernel"`), or several where it is a stack (`"layers/kernel[3]"`).

        Args:
          apply_fn: `(params, x) -> outputs`.
          params: its parameters.
          sites: what to decompose: names or patterns (`"blocks/*/mlp/*"`), or a function
            `(path, leaf) -> bool`; everything that can be if None. The rest stays fixed.
          inputs: an example, or its shapes; without it sites are found when first needed.

        Raises:
          UserError: a name of no parameter, a parameter that is no site, no site at all.
        """
        self.apply_fn, self.params = apply_fn, params
        self._selection = tuple(sites) if isinstance(sites, list) else sites
        self._sites: Sites | None = None
        if inputs is not None:
            self.at(inputs)

    @classmethod
    def from_flax(
        cls,
        module: Any,
        variables: Mapping[str, PyTree],
        sites: Selection = None,
        *,
        method: Any = None,
        inputs: PyTree | None = None,
        **fixed: Any,
    ) -> "Target":
        """A Flax Linen module as it is.

        Args:
          module: the module; `module.apply(variables, x, **fixed)` is the network.
          variables: what `module.init` returned, trained; collections besides `params` stay fixed.
          sites, inputs: see `Target`.
          method: which of its methods is the network; `__call__` if None.
          **fixed: keywords of that method, such as `train=False`.

        Raises:
          UserError: variables without `params`; see `Target`.
        """
        apply_fn, params = linen.from_linen(module, variables, method, fixed)
        return cls(apply_fn, params, sites, inputs=inputs)

    @classmethod
    def from_nnx(
        cls, model: Any, sites: Selection = None, *, inputs: PyTree | None = None
    ) -> "Target":
        """A Flax NNX model `model(x)`; all but its `nnx.Param`s stays fixed."""
        from apd_jax.sites.adapters import nnx  # takes a quarter of the time to import this package

        return cls(*nnx.from_nnx(model), sites, inputs=inputs)

    @classmethod
    def from_equinox(
        cls, model: Any, sites: Selection = None, *, inputs: PyTree | None = None
    ) -> "Target":
        """An Equinox model `model(x)` of one example, mapped over a batch of them."""
        from apd_jax.sites.adapters import equinox  # optional: only who has such a model needs it

        return cls(*equinox.from_equinox(model), sites, inputs=inputs)

    @classmethod
    def from_torch(
        cls,
        module: Any,
        inputs: PyTree,
        output: str | int | Callable | None = None,
        sites: Selection = None,
        *,
        valid: Callable[[PyTree], Any] | None = None,
        dtype: Any = None,
        **fixed: Any,
    ) -> "Target":
        """A torch module in eval mode, run in JAX by torchax; the module itself is not changed.

        Its outputs on `inputs` are compared with torch's own on two batch sizes; parameters are
        called by torch's names, `"encoder.layer.0.output.dense.weight"`. Needs `apd_jax[torch]`.

        Args:
          module: the module; all but its parameters stays fixed.
          inputs: what `forward` takes, [B, ...] tensors or arrays: one, a tuple for positions, or
            a dict for keywords. The target takes the same as JAX arrays.
          output: which part of what `forward` returns is the output: a key or attribute
            (`"logits"`), an index, or a function of it; all of it if None.
          sites: see `Target`.
          valid: function of a batch of inputs to bool [B] or [B, T], the outputs that are
            compared, such as those of positions that are not padding; all if None.
          dtype: `"float32"` to convert a copy of a module of other precision.
          **fixed: keywords of `forward`, the same for all examples, such as `use_cache=False`.

        Raises:
          UserError: torch or torchax is not installed; the module is in training mode, its weights
            are computed from others, not floating or not float32; an operator is missing in
            torchax; the outputs differ by more than 1e-4 of the largest; see `Target`.
        """
        try:
            from apd_jax.sites.adapters import torch  # optional, too
        except ImportError as error:
            raise UserError(f"from_torch needs pip install 'apd_jax[torch]' ({error})") from error
        apply_fn, params, x = torch.from_torch(module, inputs, output, dtype, valid, fixed)
        return cls(apply_fn, params, sites, inputs=x)

    @property
    def conversion_error(self) -> float | None:
        """The largest difference to torch's own outputs, in parts of the largest; see `from_torch`.

        None for a network that was not converted.
        """
        return getattr(self.apply_fn, "conversion_error", None)

    def at(self, x: PyTree) -> "Target":
        """This target, its sites found by tracing with inputs like `x` if they weren't yet.

        Raises:
          UserError: see `Target`.
        """
        if self._sites is None:
            program = trace(self.apply_fn, self.params, x)
            leaves = dict(zip(leaf_paths(self.params), jax.tree.leaves(self.params), strict=True))
            chosen = _select(self._selection, program.sites, program.left, leaves)
            kept = [site for site in program.sites.values() if site.name in chosen]
            others = [
                Left(site.name, site.shape, "not chosen", True)
                for site in program.sites.values()
                if site.name not in chosen
            ]
            self._sites = Sites(kept, [*others, *program.left])
        return self

    @property
    def sites(self) -> Sites:
        """The decomposed sites.

        Raises:
          UserError: they are not known yet.
        """
        if self._sites is None:
            raise UserError(
                "sites are found by tracing the network, which needs inputs: give Target an "
                "example, inputs=x, or call target.at(x)"
            )
        return self._sites

    @property
    def weights(self) -> dict[str, jax.Array]:
        """The decomposed matrices θ*, `{site: [(G,) d_in, d_out]}`."""
        leaves = jax.tree.leaves(self.params)
        return {name: site.matrix(leaves[site.leaf]) for name, site in self.sites.items()}

    def with_weights(self, weights: Mapping[str, jax.Array]) -> "Target":
        """The same network with other matrices at its sites."""
        leaves, tree = jax.tree.flatten(self.params)
        for name, matrix in weights.items():
            site = self.sites[name]
            leaves[site.leaf] = site.insert(jnp.asarray(leaves[site.leaf]), matrix)
        static = self.tree_flatten()[1]
        return Target.tree_unflatten(static, (jax.tree.unflatten(tree, leaves),))

    def __call__(self, x: PyTree) -> PyTree:
        """The network's outputs f(x, θ*)."""
        return self.apply_fn(self.params, x)

    def tree_flatten(self):
        return (self.params,), (self.apply_fn, self._selection, self._sites)

    @classmethod
    def tree_unflatten(cls, static, children):
        target = object.__new__(cls)
        (target.params,) = children
        target.apply_fn, target._selection, target._sites = static
        return target


def _counted(kinds: Sequence[str]) -> str:
    """Kinds of uses in order, each once, with their number where it is not 1."""
    counts = collections.Counter(kinds)
    return "; ".join(kind if n == 1 else f"{kind} ({n} uses)" for kind, n in counts.items())


def _shortened(name: str) -> str:
    """A name without its last part, where that only says that it is a weight."""
    base, bracket, index = name.partition("[")
    for ending in _ENDINGS:
        if base.endswith(ending):
            return base.removesuffix(ending) + bracket + index
    return name


def _matches(pattern: str, name: str) -> bool:
    path = name.partition("[")[0]
    names = {name, path, _shortened(name), _shortened(path)}
    return pattern in names or any(fnmatch.fnmatchcase(n, pattern) for n in names)


def _select(
    selection: Selection, sites: dict[str, Site], left: Sequence[Left], leaves: dict[str, Any]
) -> set[str]:
    """Names of the chosen sites."""
    if callable(selection):
        wanted = {path for path, leaf in leaves.items() if selection(path, leaf)}
        _refuse([other for other in left if other.path in wanted])
        chosen = {name for name, site in sites.items() if site.path in wanted}
    elif selection is None:
        chosen = set(sites)
    else:
        patterns = [selection] if isinstance(selection, str) else list(selection)
        chosen = set()
        for pattern in patterns:
            chosen |= _matching(pattern, sites, left, leaves)
    if not chosen:
        reasons = "".join(f"\n  {o.path} {list(o.shape)}: {o.reason}" for o in left)
        raise UserError(f"there is no site to decompose; the parameters are{reasons or ' none'}")
    return chosen


def _matching(pattern, sites, left, leaves) -> set[str]:
    """Names of the sites that a pattern means; a bias that it happens to match is left alone."""
    found = {name for name in sites if _matches(pattern, name)}
    others = [other for other in left if _matches(pattern, other.path)]
    exact = not any(sign in pattern for sign in "*?")
    _refuse([other for other in others if exact or other.linear or not found])
    if not found:
        raise UserError(
            f"sites: no parameter that can be decomposed is called {pattern!r}; there are "
            f"{sorted(sites)}"
        )
    return found


def _refuse(others: Sequence[Left]) -> None:
    """Raise UserError for leaves that were asked for and are no sites, or not only that."""
    if others:
        reasons = "".join(f"\n  {o.path} {list(o.shape)}: {o.reason}" for o in others)
        raise UserError(
            f"these parameters can't be decomposed:{reasons}\nEvery use of a site must be a "
            "product, a convolution or a look-up; choose other sites, or write the network so "
            "that the matrix it multiplies by is itself the parameter"
        )
