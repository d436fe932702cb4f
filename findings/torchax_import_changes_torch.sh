#!/usr/bin/env bash
# torchax 0.0.13 with torch 2.13.0: importing it makes torch.random.fork_rng and
# DataLoader(pin_memory=True) raise in the whole process (torch sees an accelerator "jax"), turns the
# fast path of attention layers off, and sets an environment variable of telemetry that child
# processes get, too. Expected: an import changes none of that. Fails if that is so.
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


def error_of(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return None


def fork():
    with torch.random.fork_rng():
        pass


def pin():
    list(torch.utils.data.DataLoader(torch.arange(4), batch_size=2, pin_memory=True))


def state():
    variable = os.environ.get("ENABLE_RUNTIME_UPTIME_TELEMETRY")
    fast = torch.backends.mha.get_fastpath_enabled()
    return fast, variable, error_of(fork), error_of(pin)


before = state()
packet.__getattr__ = found
import torchax  # noqa: F401

packet.__getattr__ = original
for package in ("torch", "torchax", "jax"):
    print(package, metadata.version(package))
print("fast path, telemetry, fork_rng, pin_memory: before", before, "after", state())
wanted = (True, None, None, None), (False, "1", "TypeError", "RuntimeError")
as_recorded = (before, state()) == wanted
print("as recorded" if as_recorded else "this has changed")
sys.exit(not as_recorded)
PYTHON
env -u ENABLE_RUNTIME_UPTIME_TELEMETRY "$folder/venv/bin/python" "$folder/case.py"
