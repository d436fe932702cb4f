#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: jax.grad of a torch function goes through a block of
# torch.no_grad() and through .data, which stop gradients in torch; .detach() stops it in both.
# The value is right and nothing is said. Expected: no gradient. Fails if that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchax==0.0.13 jax==0.10.2 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as metadata
import sys

import jax
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
from torchax import interop

env = torchax.default_env()
packet.__getattr__ = original

for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))


def in_torch(function, values):
    x = torch.tensor(values, requires_grad=True)
    function(x).sum().backward()
    return x.grad.numpy()


def in_jax(function, values):
    gradient = jax.grad(lambda x: interop.jax_view(function)(x).sum())
    with env:
        return np.asarray(gradient(np.float32(values)))


def in_block(x):
    with torch.no_grad():
        scale = x.exp()
    return x * scale


def by_data(x):
    return x * x.data.exp()


def detached(x):
    return x * x.detach().exp()


values, as_recorded = [1.0, 2.0], True
for function, stops in ((in_block, False), (by_data, False), (detached, True)):
    expected, seen = in_torch(function, values), in_jax(function, values)
    print(function.__name__, "torch", expected.tolist(), "torchax", seen.tolist())
    as_recorded &= np.allclose(expected, np.exp(values))
    as_recorded &= np.allclose(seen, expected if stops else np.exp(values) * (1 + np.array(values)))
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
