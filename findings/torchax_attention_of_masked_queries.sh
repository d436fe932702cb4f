#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: scaled_dot_product_attention is NaN for a query of which every
# key is masked. torch's own gives 0 there (its documentation of the boolean mask; since 2.5).
# Left padding makes such queries. Expected: the two agree. Fails if they do.
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
q = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # [batch, heads, queries, width]
mask = torch.tensor([[[[False, False], [True, True]]]])  # the first query may see no key
attend = torch.nn.functional.scaled_dot_product_attention
expected = attend(q, q, q, attn_mask=mask).numpy()[0, 0]
with env:
    seen = attend(*(x.to("jax") for x in (q, q, q)), attn_mask=mask.to("jax"))
seen = np.asarray(seen.jax())[0, 0]
print("torch  ", expected.tolist())
print("torchax", seen.tolist())
as_recorded = (expected[0] == 0).all() and np.isnan(seen[0]).all()
same_elsewhere = np.allclose(expected[1], seen[1])
print("as recorded" if as_recorded and same_elsewhere else "this has changed")
sys.exit(not (as_recorded and same_elsewhere))
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
