#!/usr/bin/env bash
# jax 0.10.2, jaxlib 0.10.2, numpy 2.3.5 (CPU): a jitted function takes a dictionary whose keys are
# NumPy integers, and one whose keys are tuples. Called with both in one process, the second call
# raises an error, in either order. The structures of both have the same hash, so that jit compares
# them, key by key with ==; NumPy compares a scalar with a tuple element by element, and the answer
# is no truth value. Keys that are Python's own integers are no problem.
#
# Expected: both calls give 3.0.  Observed:
#   NumPy integers, then tuples: ValueError: The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()
#   tuples, then NumPy integers: ValueError: The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()
#   integers, then tuples: 3.0
# Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import numpy as np

KEYS = {
    "NumPy integers": (np.int64(0), np.int64(1)),
    "tuples": ((0, 1), (1, 2)),
    "integers": (0, 1),
}


def second_call(first, second):
    total = jax.jit(lambda tree: sum(jax.tree.leaves(tree)))
    total(dict(zip(KEYS[first], (1.0, 2.0))))
    try:
        said = str(float(total(dict(zip(KEYS[second], (1.0, 2.0))))))
    except ValueError as error:
        said = f"ValueError: {error}"
    print(f"{first}, then {second}: {said}")
    return said


assert "ambiguous" in second_call("NumPy integers", "tuples")
assert "ambiguous" in second_call("tuples", "NumPy integers")
assert second_call("integers", "tuples") == "3.0"
PYTHON
