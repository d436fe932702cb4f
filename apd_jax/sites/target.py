"""Targets: a trained network, and which of its parameters are decomposed.

Letters: B batch, G stacked blocks, d_in / d_out widths of a site.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.programs.compiled import stand_in_for_network, weakly_referable
from apd_jax.sites.adapters import linen
from apd_jax.sites.given_arrays import as_arrays
from apd_jax.sites.leaf_names import leaf_names
from apd_jax.sites.parameters import checked
from apd_jax.sites.program import ONE_EXAMPLE, Left, trace
from apd_jax.sites.rows import batch_size
from apd_jax.sites.selection import Selection, Sites, as_selection, check_names, select

PyTree = Any


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
          inputs: an example batch, or its shapes, to trace the network with. Without it the network
            is traced at its first use, so that the errors of the second kind below come then.

        Raises:
          UserError: a name or pattern that fits no parameter; a parameter that is no array of
            numbers; or, found by tracing, a parameter
            that is no site, or no site at all.
        """
        if not callable(apply_fn):
            raise UserError(
                "the network must be a function (params, x) -> outputs, then its parameters; got a "
                f"{type(apply_fn).__name__}"
            )
        self.apply_fn, self.params = weakly_referable(apply_fn), checked(params)
        self._selection = as_selection(sites)
        check_names(self._selection, leaf_names(self.params))
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
        cls,
        model: Any,
        sites: Selection = None,
        *,
        state: Any = None,
        inputs: PyTree | None = None,
    ) -> "Target":
        """An Equinox model `model(x)` of one example, mapped over a batch of them.

        Args:
          model: the model; all but its floating-point arrays stays fixed.
          sites, inputs: see `Target`.
          state: the `eqx.nn.State` of a model that needs one, as of batch statistics. It stays
            fixed: the network is the output of `model(x, state)` in inference mode.

        Raises:
          UserError: the model needs a state, or this is not its latest; see `Target`.
        """
        from apd_jax.sites.adapters import equinox  # optional: only who has such a model needs it

        return cls(*equinox.from_equinox(model, state), sites, inputs=inputs)

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
          valid: function of a batch of inputs to bool [B] or [B, T] (one axis or several), the
            outputs that are compared, such as those of positions that are not padding; all if None.
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
        apply_fn, params, x, check = torch.from_torch(module, inputs, output, dtype, valid, fixed)
        target = cls(apply_fn, params, sites, inputs=x)
        check({site.path for site in target.sites.values()})
        return target

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
            program = trace(self.apply_fn, self.params, as_arrays(x))
            leaves = dict(zip(leaf_names(self.params), jax.tree.leaves(self.params), strict=True))
            chosen = select(self._selection, program.sites, program.left, leaves)
            kept = [site for site in program.sites.values() if site.name in chosen]
            others = [
                Left(site.name, site.shape, "not chosen", True)
                for site in program.sites.values()
                if site.name not in chosen
            ]
            self._sites = Sites(kept, [*others, *program.left], program.convolves)
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
    def convolves(self) -> bool:
        """Whether the network has convolutions; true where it was not traced yet."""
        return self._sites is None or self._sites.convolves

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

    def at_one_site(self, name: str) -> "Target":
        """The same network with a single one of its sites."""
        alone = copy.copy(self)
        alone._selection = (name,)
        alone._sites = Sites([self.sites[name]], self.sites.left, self.convolves)
        return alone

    def __call__(self, x: PyTree) -> PyTree:
        """The network's outputs f(x, θ*)."""
        return self.apply_fn(self.params, x)

    def tree_flatten(self):
        """Split into the parameters, which are the leaves, and the static rest.

        JAX keeps the static rest of what it compiled, and is to keep no network with it.
        """
        return (self.params,), (stand_in_for_network(self.apply_fn), self._selection, self._sites)

    @classmethod
    def tree_unflatten(cls, static, children):
        """The inverse of `tree_flatten`, unchecked: JAX also passes leaves that are no arrays."""
        target = object.__new__(cls)
        (target.params,) = children
        stand_in, target._selection, target._sites = static
        target.apply_fn = stand_in.function
        return target


def check_is_target(target: Any) -> None:
    """Raise UserError for a network that is no `Target`."""
    if not isinstance(target, Target):
        raise UserError(
            f"the network must be a Target, got a {type(target).__name__}: give "
            "Target(apply_fn, params), or one of Target.from_flax, from_nnx, from_equinox, "
            "from_torch"
        )


def check_inputs(target: Any, x: PyTree) -> None:
    """Raise UserError unless a target takes inputs [B, ...] and returns outputs [B, ...]."""
    check_is_target(target)
    size = batch_size(x)
    target.at(x)
    outputs = trace(target.apply_fn, target.params, x).closed.out_avals
    if any(leaf.shape[:1] != (size,) for leaf in outputs):
        raise UserError(ONE_EXAMPLE)
