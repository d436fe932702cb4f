#!/usr/bin/env bash
# Run the tests that need torch and transformers, in an environment of their own.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
python=.venv-torch/bin/python
if ! cmp -s requirements-torch.txt .venv-torch/installed; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  "${PYTHON:-python3}" -m venv --clear .venv-torch
  "$python" -m pip install --quiet --no-compile -r requirements-torch.txt
  "$python" -m pip install --quiet --no-deps --editable .
  cp requirements-torch.txt .venv-torch/installed
fi
exec "$python" -m pytest -q tests/torch_*_test.py "$@"
