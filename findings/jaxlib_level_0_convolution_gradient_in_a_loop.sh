#!/usr/bin/env bash
# jax and jaxlib 0.10.2, on a CPU: at xla_backend_optimization_level=0, which people set to compile
# tests quickly, the gradient of two convolutions takes about 25 times as long inside a fori_loop as
# at level 2. The same gradient outside a loop takes about as long at both levels, and so do the
# convolutions without their gradient in a loop. Expected: a library's convolution does not depend on
# how LLVM optimises the rest. Fails if the gradient in a loop is less than 5 times as slow, or the
# gradient outside of it more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import sys
import time

import jax
import jax.numpy as jnp
import jaxlib

print("jax", jax.__version__, "jaxlib", jaxlib.__version__)
layout = ("NHWC", "HWIO", "NHWC")
keys = jax.random.split(jax.random.key(0), 3)
images = jax.random.normal(keys[0], (40, 16, 16, 3))
first = jax.random.normal(keys[1], (3, 3, 3, 8))
second = jax.random.normal(keys[2], (3, 3, 8, 8))


def loss(x):
    hidden = jax.lax.conv_general_dilated(x, first, (1, 1), "SAME", dimension_numbers=layout)
    hidden = jax.nn.relu(hidden)
    y = jax.lax.conv_general_dilated(hidden, second, (2, 2), "SAME", dimension_numbers=layout)
    return jnp.square(y).sum()


def repeated(x):
    return jax.lax.fori_loop(0, 20, lambda _, x: x + 0.1 * jnp.sign(jax.grad(loss)(x)), x)


def seconds(function, level):
    """CPU time of one call, the least of five."""
    options = {"xla_backend_optimization_level": level}
    program = jax.jit(function).lower(images).compile(compiler_options=options)
    times = []
    for _ in range(6):
        start = time.process_time()
        jax.block_until_ready(program(images))
        times.append(time.process_time() - start)
    return min(times[1:])


ratios = {}
for name, function in {"outside": jax.grad(loss), "in a loop": repeated}.items():
    slow, fast = seconds(function, 0), seconds(function, 2)
    ratios[name] = slow / fast
    print(f"{name}: level 0 {slow:.4f} s, level 2 {fast:.4f} s, ratio {ratios[name]:.1f}")
as_recorded = ratios["in a loop"] > 5 > ratios["outside"]
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
