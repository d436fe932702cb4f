#!/usr/bin/env bash
# Check style (ruff), docstrings (ruff's pydocstyle rules), types (mypy) and shell scripts.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/setup.sh
if ! cmp -s requirements-check.txt .venv/checks-installed; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  .venv/bin/python -m pip install --quiet --no-compile -r requirements-check.txt
  cp requirements-check.txt .venv/checks-installed
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if command -v shellcheck >/dev/null 2>&1; then
  shellcheck launch/*.sh benchmarks/*.sh .ci/run
else
  echo "launch/check.sh: shellcheck is not installed, so the shell scripts were not checked." >&2
fi
