"""Compiled programs that are freed with the function they are made of.

`jax.jit` keeps static arguments, and all that their closures hold (data, networks), for as long as
the process runs, also after `jax.clear_caches()`. So a function is no static argument here.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def kept_with(function: Callable, make: Callable[..., Any], *arguments: Any) -> Any:
    """The value of `make(function, *arguments)`, made once and kept while `function` lives.

    Args:
      function: what is compiled.
      make: gets a stand-in that calls `function` without keeping it.
      *arguments: hashable.
    """
    kept = _kept.setdefault(function, {})
    if (make, *arguments) not in kept:
        reference = weakref.ref(function)

        def stand_in(*inputs):
            return reference()(*inputs)

        kept[make, *arguments] = make(stand_in, *arguments)
    return kept[make, *arguments]


def jit_with_owner(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of `function(owner, *arrays)` whose programs are kept while the owner lives.

    The owner is a pytree, such as a network, whose structure holds functions of the caller.
    """

    @functools.wraps(function)
    def call(owner, *arrays):
        leaves, tree = jax.tree.flatten(owner)
        kept = _kept.setdefault(owner, {})
        if function not in kept:
            kept[function] = jax.jit(
                lambda leaves, *arrays: function(jax.tree.unflatten(tree, leaves), *arrays)
            )
        return kept[function](leaves, *arrays)

    return call
