#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: most changes in place through a view are lost without an error:
# all through .t(), .select(), .narrow(), .chunk(), and zero_ and fill_ through an index. In torch a
# view shares its base's memory, so that the base changes. mul_ through an index is kept.
# Expected: the same numbers as torch, or an error. Fails if that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchax==0.0.13 jax==0.10.2 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as metadata
import sys

import numpy as np
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


def transposed(x):
    y = x.clone()
    y.t().mul_(2)
    return y


def chunk(x):
    y = x.clone()
    y.chunk(2, dim=-1)[0].mul_(2)
    return y


def narrow(x):
    y = x.clone()
    y.narrow(0, 0, 1).mul_(2)
    return y


def row_zero(x):
    y = x.clone()
    y[0].zero_()
    return y


def row(x):
    y = x.clone()
    y[0].mul_(2)
    return y


for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))
x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
same = {}
for function in (transposed, chunk, narrow, row_zero, row):
    expected = function(x).numpy()
    with env:
        seen = np.asarray(function(x.to("jax")).jax())
    same[function.__name__] = bool((seen == expected).all())
    print(function.__name__, "torch", expected.tolist(), "torchax", seen.tolist())
as_recorded = [name for name, kept in same.items() if kept] == ["row"]
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
