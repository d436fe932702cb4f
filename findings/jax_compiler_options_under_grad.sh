#!/usr/bin/env bash
# jax 0.10.2: a function jitted with `compiler_options` has no `grad`, although nothing encloses it.
# `vmap` and `jvp` of the function take the options; `grad`, `vjp`, `hessian`, and `eval_shape` of a
# function that calls it, which compiles nothing, raise "can only be passed to top-level jax.jit".
# Expected: the options hold, or are ignored, wherever the function may be called.  Observed:
#   call, vmap, jvp: works
#   grad, vjp, eval_shape: ValueError: `compiler_options` can only be passed to top-level `jax.jit`.
# Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/case.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

sine = jax.jit(jnp.sin, compiler_options={"xla_backend_optimization_level": 1})
x = jnp.ones(3)


def outcome(call):
    try:
        call()
        return "works"
    except ValueError as error:
        return "ValueError: " + str(error).partition(" Got ")[0]


calls = {
    "call": lambda: sine(x),
    "vmap": lambda: jax.vmap(sine)(x),
    "jvp": lambda: jax.jvp(sine, (x,), (x,)),
    "grad": lambda: jax.grad(lambda y: sine(y).sum())(x),
    "vjp": lambda: jax.vjp(sine, x),
    "eval_shape": lambda: jax.eval_shape(lambda y: sine(y), x),
}
seen = {name: outcome(call) for name, call in calls.items()}
print(f"jax {jax.__version__}")
for name, text in seen.items():
    print(f"  {name}: {text}")
works = [name for name, text in seen.items() if text == "works"]
sys.exit(0 if works == ["call", "vmap", "jvp"] else "this is not what was seen")
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
