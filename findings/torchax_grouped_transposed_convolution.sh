#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: a transposed convolution with groups gives other numbers than
# torch, without an error. With one group, or as many groups as channels, they agree.
# Expected: the two agree for every number of groups. Fails if they do.
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
torch.manual_seed(0)
x = torch.randn(1, 4, 5)  # [batch, channels, length]
away = {}
for groups in (1, 2, 4):
    weight = torch.randn(4, 2, 3)  # [channels in, channels out of a group, width]
    convolve = torch.nn.functional.conv_transpose1d
    expected = convolve(x, weight, groups=groups).numpy()
    with env:
        seen = convolve(x.to("jax"), weight.to("jax"), groups=groups)
    away[groups] = float(np.abs(np.asarray(seen.jax()) - expected).max())
    print(f"{groups} groups: largest difference {away[groups]:.1e}, of numbers up to {expected.max():.1f}")
as_recorded = away[1] < 1e-5 and away[2] > 0.1 and away[4] < 1e-5
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
