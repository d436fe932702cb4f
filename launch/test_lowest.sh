#!/usr/bin/env bash
# Run the fast tests with the lowest versions that setup.cfg allows, in .venv-lowest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
python=.venv-lowest/bin/python
if ! cmp -s requirements-lowest.txt .venv-lowest/installed; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  "${PYTHON:-python3}" -m venv --clear .venv-lowest
  "$python" -m pip install --quiet --no-compile -r requirements-lowest.txt
  "$python" -m pip install --quiet --no-deps --editable .
  "$python" -m pip check
  cp requirements-lowest.txt .venv-lowest/installed
fi
# Use the fusion emitters, as in every real run; tests/conftest.py turns them off to save time.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=true"
exec "$python" -m pytest -q -m "not slow" "$@"
