"""Compiled programs that are freed with the function they are made of.

`jax.jit` keeps static arguments, and all that their closures hold (data, networks), for as long as
the process runs, also after `jax.clear_caches()`. So a function is no static argument here: what is
compiled gets a `StandIn` for it.
"""

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax

from apd_jax.programs import quick

_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_wrapped: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # by what is wrapped
_latest: list[Callable] = []


class StandIn:
    """Stands for a function without keeping it alive; equal to those of equal functions."""

    def __init__(self, function: Callable):
        self._reference, self._hash = weakref.ref(function), hash(function)

    @property
    def function(self) -> Callable:
        """The function itself."""
        function = self._reference()
        assert function is not None, "programs live only as long as the function"
        return function

    def __call__(self, *inputs: Any) -> Any:
        """What the function gives."""
        return self.function(*inputs)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: Any) -> bool:
        if self is other or not isinstance(other, StandIn):
            return self is other
        mine, others = self._reference(), other._reference()
        return mine is not None and others is not None and (mine is others or mine == others)


def stand_in_for_network(network: Callable) -> StandIn:
    """Make a stand-in for a network, and keep the network alive until another one gets its own.

    A transform that returns a target drops the target before it rebuilds it. A module that is
    created anew for every call can share programs only with an equal one that still exists.
    """
    # Compare hashes first, as a dictionary does: a caller's `__eq__` may rely on that.
    if not _latest or hash(_latest[0]) != hash(network) or _latest[0] != network:
        _latest[:] = [network]
    return StandIn(_latest[0])


def kept_with(function: Callable, make: Callable[..., Any], *arguments: Any) -> Any:
    """The value of `make(function, *arguments)`, made once and kept while `function` lives.

    Args:
      function: what is compiled.
      make: gets a `StandIn` for the function.
      *arguments: hashable.
    """
    kept = _kept.setdefault(function, {})
    if (make, *arguments) not in kept:
        kept[make, *arguments] = make(StandIn(function), *arguments)
    return kept[make, *arguments]


def weakly_referable(function: Callable) -> Callable:
    """The function, wrapped if nothing can be kept with it: a wrapper is equal to itself alone.

    Such are objects of a class with slots alone, or of one with `__eq__` and no `__hash__`, like a
    data class. As long as an object's wrapper lives, it gets no other one.
    """
    try:
        hash(function), weakref.ref(function)
    except TypeError:
        wrapper: Any = functools.partial(function)
        wrapper.__qualname__ = type(function).__name__  # for configs
        return _wrapped.setdefault(id(function), wrapper)
    return function


def make_referable(record: Any, *names: str) -> None:
    """Make those of a frozen record's fields `weakly_referable` that are functions."""
    for name in names:
        value = getattr(record, name)
        if callable(value):
            object.__setattr__(record, name, weakly_referable(value))


def _not_kept(value: Any) -> Any:
    """A static argument with stand-ins for functions of the caller, which may hold the network."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return StandIn(value) if inspect.isfunction(value) else value
    own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    functions = {name: StandIn(f) for name, f in own.items() if inspect.isfunction(f)}
    if functions and callable(value):
        return StandIn(value)
    return dataclasses.replace(value, **functions) if functions else value


def jit_with_network(
    function: Callable[..., Any] | None = None, *, static: int = 0
) -> Callable[..., Any]:
    """`jax.jit` of `function(*static, target, *arrays)`, programs kept while the network lives.

    The target's structure holds the network, a function of the caller. Programs of small networks
    on little data are compiled quickly (`programs.quick`).

    Args:
      function: what is compiled.
      static: how many arguments before the target are no arrays: hashable, and functions or data
        classes that hold functions perhaps.
    """
    if function is None:
        return functools.partial(jit_with_network, static=static)

    def make(_: StandIn, options: tuple[tuple[str, Any], ...], *fixed: Any):
        return jax.jit(functools.partial(function, *fixed), compiler_options=dict(options))

    def program(*arguments):
        target, *others = arguments[static:]
        fixed = (_not_kept(value) for value in arguments[:static])
        options = tuple(quick.options(target, others).items())
        return kept_with(target.apply_fn, make, options, *fixed)

    @functools.wraps(function)
    def call(*arguments):
        return program(*arguments)(*arguments[static:])

    def lower(*arguments):
        return program(*arguments).lower(*arguments[static:])

    compiled: Any = call
    compiled.lower = lower  # as `jax.jit` has it
    return compiled
