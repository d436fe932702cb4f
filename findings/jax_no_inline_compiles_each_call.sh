#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2 (CPU): a jitted function that is called within another one under
# set_xla_metadata(inlineable="false") stays a function of its own, and the lowered program holds it
# once. One would guess that it is then compiled once. The compiled program has one copy for every
# call, so that the mark saves no compile time. A scan that makes the eight calls has one copy.
#
# Expected: 1 copy in each line.  Observed:
#   1 calls: 1 in the lowered program, 1 in the compiled one
#   2 calls: 1 in the lowered program, 2 in the compiled one
#   4 calls: 1 in the lowered program, 4 in the compiled one
#   8 calls: 1 in the lowered program, 8 in the compiled one
#   scan of 8: 1 in the compiled one
# Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import xla_metadata


@jax.jit
def wave(x):
    return jnp.sin(x) + 1


def calls(number):
    @jax.jit
    def program(x):
        for _ in range(number):
            with xla_metadata.set_xla_metadata(inlineable="false"):
                x = wave(x)
        return x

    return program


@jax.jit
def scanned(x):
    return jax.lax.scan(lambda x, _: (wave(x), None), x, length=8)[0]


def compiled(program):
    return program.lower(jnp.ones(5)).compile().as_text().count(" sine(")


found = []
for number in (1, 2, 4, 8):
    lowered = calls(number).lower(jnp.ones(5)).as_text().count("stablehlo.sine")
    found.append((lowered, compiled(calls(number))))
    print(f"{number} calls: {lowered} in the lowered program, {found[-1][1]} in the compiled one")
print(f"scan of 8: {compiled(scanned)} in the compiled one")
assert found == [(1, 1), (1, 2), (1, 4), (1, 8)], found
assert compiled(scanned) == 1
PYTHON
