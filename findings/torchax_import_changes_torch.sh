#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: importing it turns torch's fast path of attention layers off in
# the whole process, and sets an environment variable of telemetry that child processes get, too.
# Expected: an import changes neither. Fails if that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchax==0.0.13 jax==0.10.2 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as metadata
import os
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


def state():
    variable = os.environ.get("ENABLE_RUNTIME_UPTIME_TELEMETRY")
    return torch.backends.mha.get_fastpath_enabled(), variable


before = state()
packet.__getattr__ = found
import torchax  # noqa: F401

packet.__getattr__ = original
for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))
print("fast path, telemetry: before", before, "after", state())
as_recorded = (before, state()) == ((True, None), (False, "1"))
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
env -u ENABLE_RUNTIME_UPTIME_TELEMETRY "$folder/venv/bin/python" "$folder/case.py"
