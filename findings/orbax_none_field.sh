#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (jax 0.10.2): a checkpoint cannot be restored into a NamedTuple that has
# gained a field whose value is None, although None holds no arrays: jax.tree.leaves gives the same
# leaves. StandardRestore raises ValueError, "tree structures do not match", and names the field
# with "Source: MISSING - Target: MISSING".
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/restore.py" <<'PYTHON'
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp


class Before(NamedTuple):
    weights: Any


class After(NamedTuple):
    weights: Any
    added: Any = None


saved, like = Before(np.arange(3.0)), After(np.zeros(3))
assert len(jax.tree.leaves(saved)) == len(jax.tree.leaves(like)) == 1
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], saved)
    checkpointer.wait_until_finished()
    assert np.array_equal(checkpointer.restore(sys.argv[1], Before(np.zeros(3))).weights, saved[0])
    try:
        checkpointer.restore(sys.argv[1], like)
    except ValueError as error:
        print(f"orbax-checkpoint {ocp.__version__}: {' '.join(str(error).split())}")
        raise SystemExit("added" not in str(error))
raise SystemExit("the checkpoint was restored")
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5 \
  orbax-checkpoint==0.12.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/restore.py" "$folder/saved" 2>"$folder/log" || {
  cat "$folder/log"
  exit 1
}
# Seen:
#   orbax-checkpoint 0.12.8: User-provided restore item and on-disk value metadata tree structures do
#   not match: added: - Source: MISSING - Target: MISSING If this mismatch is intentional, pass
#   `partial_restore=True` to only restore parameters found in `item`.
