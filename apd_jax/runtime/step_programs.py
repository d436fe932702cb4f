"""The compiled programs of the loop: a chunk of scanned steps, and the work between two steps.

Letters: S seeds side by side.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from apd_jax import randomness
from apd_jax.programs import compiled
from apd_jax.runtime.mesh import Layout

PyTree = Any


def chunk(step_fn: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    """The compiled steps of a step function whose context has the structure `tree`.

    Returns:
      `(length, layout, leaves of the context, state, seeds, fed) -> (state, metrics [S, length])`;
      the state's buffers are donated.
    """
    return compiled.kept_with(step_fn, _make_chunk, tree)


def between(function: Callable[..., Any], tree: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """The compiled work between two steps, whose context has the structure `tree`.

    Args:
      function: see `loop.Between`.
      tree: structure of the context.
      options: those of the compiler.

    Returns:
      `(layout, leaves of the context, state, seeds, fed) -> state`, the state donated.
    """
    return compiled.kept_with(function, _make_between, tree, tuple(options.items()))


def _make_chunk(step_fn: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    def one_seed(length, seed_context, seed_state, seed, fed):
        key = randomness.root(seed)
        reads = seed_context if fed is None else (seed_context, fed)

        def body(carry, _):
            return step_fn(reads, carry, randomness.step_key(key, carry.step))

        return jax.lax.scan(body, seed_state, length=length)

    @functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
    def chunk(length, layout, leaves, state, seeds, fed):
        one = functools.partial(one_seed, length)
        all_seeds = jax.vmap(one, in_axes=(0, 0, 0, None))
        context = jax.tree.unflatten(tree, leaves)
        if layout is None:
            return all_seeds(context, state, seeds, fed)
        state, metrics = layout.over_seeds(all_seeds, shared=1)(context, state, seeds, fed)
        return _kept_in(layout, state), jax.lax.with_sharding_constraint(metrics, layout.measured)

    return chunk


def _make_between(
    function: Callable[..., PyTree], tree: Any, options: tuple[tuple[str, Any], ...]
) -> Callable[..., Any]:
    """One call for every seed, one after another: `cond` then skips what a seed does not need."""

    def between(layout, leaves, state, seeds, fed):
        def all_seeds(*arguments):
            *arguments, fed = arguments

            def one_seed(arguments):
                seed_context, seed_state, seed = arguments
                key = randomness.step_key(randomness.root(seed), seed_state.step)
                reads = seed_context if fed is None else (seed_context, fed)
                return function(reads, seed_state, key)

            return jax.lax.map(one_seed, tuple(arguments))

        context = jax.tree.unflatten(tree, leaves)
        if layout is None:
            return all_seeds(context, state, seeds, fed)
        return _kept_in(layout, layout.over_seeds(all_seeds, shared=1)(context, state, seeds, fed))

    return jax.jit(between, static_argnums=0, donate_argnums=2, compiler_options=dict(options))


def _kept_in(layout: Layout, state: PyTree) -> PyTree:
    """Keep a state on the devices of the previous one, so that it can reuse its buffers."""
    return jax.lax.with_sharding_constraint(state, layout.state(state))
