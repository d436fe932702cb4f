#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: average pooling with ceil_mode=True divides the last window by
# the size of the whole window, also where part of it lies outside of the input, without an error.
# Expected: the mean of what lies inside, as torch gives. Fails if the two agree.
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

for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))
x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4)  # [batch, channels, height, width]
away = {}
for ceil_mode in (False, True):
    pool = torch.nn.AvgPool2d(3, 2, ceil_mode=ceil_mode)
    expected = pool(x).numpy()
    with env:
        seen = np.asarray(pool(x.to("jax")).jax())
    away[ceil_mode] = float(np.abs(seen - expected).max())
    print(f"ceil_mode={ceil_mode}: torch {expected[0, 0].tolist()}, torchax {seen[0, 0].tolist()}")
as_recorded = away[False] < 1e-5 and away[True] > 1
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
