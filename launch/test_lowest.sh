#!/usr/bin/env bash
# Run tests with the lowest versions that setup.cfg allows, in an environment of their own.
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
# Here kernels are emitted as in every real run; tests/conftest.py asks for the quicker way.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=true"
exec "$python" -m pytest -q -m "not slow" "$@"
