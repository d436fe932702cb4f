#!/usr/bin/env bash
# torch 2.13.0: a slice of a ModuleList or Sequential in eval mode is a container in training mode.
# Its modules are shared and stay in eval mode, so that only module.training and code that checks it
# see the difference. Expected: the slice has the mode of what it was taken from. Fails if it has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import sys

import torch

print("torch", torch.__version__)
as_recorded = []
for container in (torch.nn.ModuleList([torch.nn.Linear(2, 2)]), torch.nn.Sequential(torch.nn.ReLU())):
    part = container.eval()[:1]
    print(type(part).__name__, "slice:", part.training, "its module:", part[0].training)
    as_recorded.append(part.training and not part[0].training)
print("as recorded" if all(as_recorded) else "this has changed")
sys.exit(not all(as_recorded))
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
