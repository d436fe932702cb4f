#!/usr/bin/env bash
# jax 0.10.2: what a donating `jit` is called with stays in memory for as long as the process runs.
# The static part of an argument (a pytree's auxiliary data, so anything that a function or module
# in it refers to) is a key of a cache that `jax.clear_caches()` does not empty; without
# `donate_argnums` the same object is freed. Expected: freed in both cases. Fails if it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/case.py" <<'PYTHON'
import gc
import sys
import weakref

import jax
import jax.numpy as jnp


class Owner:
    """Stands for a large data set or model that a pytree's static part refers to."""


def stays(**options):
    owner = Owner()
    seen = weakref.ref(owner)

    @jax.tree_util.register_pytree_node_class
    class Box:
        def __init__(self, leaf, owner):
            self.leaf, self.owner = leaf, owner

        def tree_flatten(self):
            return (self.leaf,), self.owner

        @classmethod
        def tree_unflatten(cls, owner, leaves):
            return cls(leaves[0], owner)

    step = jax.jit(lambda box, state: state + box.leaf, **options)
    jax.block_until_ready(step(Box(jnp.ones(3), owner), jnp.zeros(3)))
    del owner, step, Box
    jax.clear_caches()
    gc.collect()
    return seen() is not None


plain, donating = stays(), stays(donate_argnums=(1,))
print(f"jax {jax.__version__}: after clear_caches the static part of an argument is still there:")
print(f"  without donation: {plain}; with donate_argnums: {donating}")
sys.exit(0 if (plain, donating) == (False, True) else "this is not what was seen with jax 0.10.2")
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
