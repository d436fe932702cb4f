"""Equinox models of one example, mapped over the batch: all but arrays of real numbers is fixed."""

import dataclasses
from typing import Any

import equinox
import jax
import jax.numpy as jnp

from apd_jax.errors import UserError
from apd_jax.sites.adapters.fixed import Fixed, check_state, plain, saved_value

PyTree = Any
_WITH_STATE = "Target.from_equinox(model, state=state)"


@dataclasses.dataclass(frozen=True)
class EquinoxApply:
    """A model combined from its parameters and the rest of it, and called on every example.

    Attributes:
      fixed: the rest of the model.
      values: of a model that is called with a state, the values in it, one an index, in order;
        None for `model(x)`.
    """

    fixed: Fixed
    values: Fixed | None = None

    def __call__(self, params: PyTree, x: PyTree) -> PyTree:
        """The model's outputs [B, ...] for inputs [B, ...]."""
        model = equinox.combine(params, self.fixed.value)
        if self.values is None:
            return jax.vmap(model)(x)
        markers = tuple(index.marker for index in _indices(model))
        values = self.values.value

        def output(example):
            state = equinox.nn.State.tree_unflatten(markers, values)  # a new one: usable once
            result = model(example, state)
            if not isinstance(result, tuple) or len(result) != 2:
                raise UserError(
                    "a model with state= must return a tuple (output, state), got a "
                    f"{type(result).__name__}"
                )
            return result[0]

        return jax.vmap(output, axis_name="batch")(x)

    @property
    def settings(self) -> dict[str, Any]:
        """The containers of the state, where there is one."""
        if self.values is None:
            return {}
        containers = [jax.tree.map(lambda _: 0, value) for value in self.values.value]
        return {"containers": plain(containers)}

    @property
    def state(self) -> PyTree:
        """The arrays that are no parameters, in order, then those of the state."""
        return [*self._arrays, *jax.tree.leaves(self.values.value if self.values else ())]

    @property
    def _arrays(self) -> list[jax.Array]:
        return list(map(jnp.asarray, filter(equinox.is_array, jax.tree.leaves(self.fixed.value))))

    def with_state(self, state: PyTree) -> "EquinoxApply":
        """The same model with other arrays in place of those that are no parameters."""
        own, count = self.state, len(self._arrays)
        if isinstance(state, list) and len(state) == len(own):
            own[count:] = state[count:]  # the shapes of a restored model's state are not known
        check_state(own, state)
        leaves, tree = jax.tree.flatten(self.fixed.value)
        places = [i for i, leaf in enumerate(leaves) if equinox.is_array(leaf)]
        for place, array in zip(places, state, strict=False):
            leaves[place] = jnp.asarray(array)
        values = self.values
        if values is not None:
            containers = jax.tree.structure(values.value)
            values = Fixed(jax.tree.unflatten(containers, state[count:]))
        return EquinoxApply(Fixed(jax.tree.unflatten(tree, leaves)), values)


def from_equinox(model: Any, state: Any = None) -> tuple[EquinoxApply, PyTree]:
    """`(apply_fn, params)` of an Equinox model of one example; see `Target.from_equinox`."""
    if state is None:
        if _indices(model) and not _found(model, equinox.nn.State):
            raise UserError(
                f"the model needs a state, such as batch statistics: give {_WITH_STATE}, where "
                "state is what its last call in training returned"
            )
        return _split(model, None)
    if not isinstance(state, equinox.nn.State):
        raise UserError(
            f"state must be the model's eqx.nn.State, got a {type(state).__name__}: give the one "
            "that eqx.nn.make_with_state or its last call in training returned"
        )
    try:
        values = tuple(state.get(index) for index in _indices(model))
    except (KeyError, ValueError) as error:  # of another model; or already replaced by a later one
        raise UserError(
            "state is of another model, or not the latest of this one: give the state that the "
            "model's last call in training returned"
        ) from error
    return _split(model, Fixed(values))


def restored(model: Any, settings: dict[str, Any]) -> tuple[EquinoxApply, PyTree]:
    """The function of a model that was saved, and parameters of the types that it keeps."""
    if "containers" not in settings:
        return from_equinox(model)
    values = tuple(saved_value("the state", settings["containers"], f"a Target, {_WITH_STATE}"))
    indices = _indices(model)
    if len(values) != len(indices):
        raise UserError(
            f"the model has {len(indices)} indices into its state, and the saved one "
            f"{len(values)}: load with the model that was decomposed"
        )
    return _split(model, Fixed(values))


def _split(model: Any, values: Fixed | None) -> tuple[EquinoxApply, PyTree]:
    """A model as a function and its parameters; with a state, in inference mode."""
    if values is not None:
        model = equinox.nn.inference_mode(equinox.nn.delete_init_state(model))
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    return EquinoxApply(Fixed(rest), values), params


def _found(model: PyTree, kind: type) -> list[Any]:
    """The nodes of a model that are of a class."""
    leaves = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def _indices(model: PyTree) -> list[Any]:
    """A model's indices into its state, each once, in order."""
    found = _found(model, equinox.nn.StateIndex)
    return list({index.marker: index for index in found}.values())
