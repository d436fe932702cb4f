"""The compiled programs of the loop: the first state, a chunk of steps, the work between two steps.

Letters: S seeds side by side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from apd_jax import randomness
from apd_jax.programs import compiled, quick
from apd_jax.runtime.mesh import Layout, put

PyTree = Any


def first_state(
    layout: Layout | None,
    init: Callable[..., PyTree],
    context: PyTree,
    seeds: jax.Array,
    pool: PyTree,
) -> PyTree:
    """Make the first state, `init(context, seeds, pool)`, on the devices where it is to lie.

    Args:
      layout: where it is to lie; None for a single device.
      init: function of all seeds.
      context: what steps read, [S, ...].
      seeds: uint32 [S].
      pool: what all seeds read.
    """
    jit = functools.partial(jax.jit, compiler_options=quick.options(context))
    if layout is None:
        return jit(init)(context, seeds, pool)
    context = put(context, layout.context(context))
    seeds, pool = put(seeds, layout.state(seeds)), put(pool, layout.everywhere)
    divided = layout.over_seeds(init, shared=1)
    shardings = layout.state(jax.eval_shape(divided, context, seeds, pool))
    return jit(divided, out_shardings=shardings)(context, seeds, pool)


def chunk(step_fn: Callable[..., Any], tree: Any) -> Callable[..., Any]:
    """The compiled steps of a step function whose context has the structure `tree`.

    Returns:
      `(length, layout, leaves of the context, state, seeds, fed) -> (state, metrics [S, length])`;
      the state's buffers are donated.
    """
    return compiled.kept_with(step_fn, _make_chunk, tree)


def between(
    function: Callable[..., Any], tree: Any, leaves: Sequence[jax.Array]
) -> Callable[..., Any]:
    """The compiled work between two steps, whose context has the structure `tree` and these leaves.

    Returns:
      `(layout, leaves of the context, state, seeds, fed) -> state`, the state donated.
    """
    options = tuple(quick.options(jax.tree.unflatten(tree, leaves)).items())
    return compiled.kept_with(function, _make_between, tree, options)


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
