#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: a slice of a tensor (x[0]) can't be indexed by a tensor or a list:
# AttributeError: 'View' object has no attribute '_elem'. The tensor itself can be.
# Expected: the rows that torch gives. Fails if no error is raised.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchax==0.0.13 jax==0.10.2 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as metadata
import sys

import torch

# torchax names overloads for named tensors that torch 2.13 has no more; see the finding on that.
packet = torch._ops.OpOverloadPacket
original = packet.__getattr__


def found(self, name):
    try:
        return original(self, name)
    except AttributeError:
        if "imname" in name or "names" in name:
            return object()
        raise


packet.__getattr__ = found
import torchax

env = torchax.default_env()
packet.__getattr__ = original

for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))
x = torch.arange(12.0).reshape(1, 4, 3)
rows = torch.tensor([2, 0])
print("torch:", x[0][rows].tolist())
with env:
    on_jax, rows_on_jax = x.to("jax"), rows.to("jax")
    print("torchax, of the tensor itself:", on_jax[:, rows_on_jax].jax().tolist())
    error = None
    try:
        on_jax[0][rows_on_jax]
    except AttributeError as raised:
        error = str(raised)
print("torchax, of a slice:", error)
as_recorded = error is not None and "_elem" in error
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
