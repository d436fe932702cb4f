#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: under jit, the pull-back of an RMS norm and a matrix product for several
# directions at once (vmap of jax.linear_transpose) is wrong by a third, without a warning, if
# directions x examples x positions reach about 4096 rows. It is right op by op, with fewer rows,
# with jaxlib 0.10.1, and with --xla_cpu_experimental_ynn_fusion_type= (no type): what goes
# wrong is the fusion of sums into YNNPACK, which is on by default.
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/pull.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def network(h, weight):
    mean = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
    return ((h * jax.lax.rsqrt(mean + 1e-6)) @ weight).reshape(len(h), -1)


def pulled(h, weight, directions):
    _, push = jax.linearize(lambda tap: network(h + tap, weight), jnp.zeros_like(h))
    return jax.vmap(jax.linear_transpose(push, h))(directions)[0]


def error(count, examples, positions=64, width=32, outputs=64):
    draw = np.random.default_rng(0).standard_normal
    shapes = (examples, positions, width), (width, outputs), (count, examples, positions * outputs)
    arguments = [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]
    exact, compiled = pulled(*arguments), jax.jit(pulled)(*arguments)
    return float(jnp.abs(exact - compiled).max() / jnp.abs(exact).max())


few, many = error(8, 4), error(8, 16)
print(f"jaxlib {jax.lib.__version__}: 2048 rows {few:.1e}, 8192 rows {many:.1e}")
wrong = sys.argv[1] == "wrong"
sys.exit(not (few < 1e-5 and (many > 0.1 if wrong else many < 1e-5)))
PYTHON
python3 -m venv "$folder/env"
install() { "$folder/env/bin/pip" install --quiet --disable-pip-version-check "$@"; }
run() { JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/pull.py" "$1"; }
install jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
run wrong
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= run right
install jax==0.10.1 jaxlib==0.10.1
run right
# Seen (x86-64, 2 cores):
#   jaxlib 0.10.2: 2048 rows 8.5e-08, 8192 rows 5.1e-01
#   jaxlib 0.10.2: 2048 rows 1.3e-07, 8192 rows 1.7e-07
#   jaxlib 0.10.1: 2048 rows 1.3e-07, 8192 rows 1.7e-07
