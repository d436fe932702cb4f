"""Compiled programs that are freed with the function they are made of.

`jax.jit` keeps static arguments, and all that their closures hold (data, networks), for as long as
the process runs, also after `jax.clear_caches()`. So a function is no static argument here: what is
compiled gets a `StandIn` for it.
"""

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class StandIn:
    """Calls a function without keeping it alive."""

    def __init__(self, function: Callable):
        self._reference = weakref.ref(function)

    @property
    def function(self) -> Callable | None:
        """The function itself, None if it is gone."""
        return self._reference()

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives."""
        assert self.function is not None, "programs are kept only as long as their function"
        return self.function(*inputs)


def kept_with(function: Callable, make: Callable[..., Any], *arguments: Any) -> Any:
    """The value of `make(function, *arguments)`, made once and kept while `function` lives.

    Args:
      function: what is compiled, or its stand-in.
      make: gets a `StandIn` for the function.
      *arguments: hashable.
    """
    function = itself(function)
    stand_in, kept = _kept.get(function, (None, None))
    if stand_in is None or stand_in.function is None:
        stand_in, kept = _kept[function] = StandIn(function), {}
    if (make, *arguments) not in kept:
        kept[make, *arguments] = make(stand_in, *arguments)
    return kept[make, *arguments]


def itself(function: Callable) -> Callable:
    """The function that a stand-in stands for; any other is itself."""
    if not isinstance(function, StandIn):
        return function
    assert function.function is not None, "programs are kept only as long as their function"
    return function.function


def weakly_referable(function: Callable) -> Callable:
    """The function, wrapped if nothing can be kept with it, as a class with slots alone."""
    try:
        weakref.ref(function)
    except TypeError:
        return functools.partial(function)
    return function


def jit_with_network(
    function: Callable[..., Any] | None = None, *, static: int = 0
) -> Callable[..., Any]:
    """`jax.jit` of `function(*static, target, *arrays)`, programs kept while the network lives.

    The target's structure holds the network, a function of the caller.

    Args:
      function: what is compiled.
      static: how many arguments before the target are no arrays; hashable.
    """
    if function is None:
        return functools.partial(jit_with_network, static=static)

    def make(network: StandIn, *fixed: Any):
        return network, jax.jit(functools.partial(function, *fixed))

    @functools.wraps(function)
    def call(*arguments):
        fixed, (target, *arrays) = arguments[:static], arguments[static:]
        twin = copy.copy(target)
        twin.apply_fn, program = kept_with(target.apply_fn, make, *fixed)
        return program(twin, *arrays)

    return call
