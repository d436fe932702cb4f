#!/usr/bin/env bash
# Create or update the virtual environment .venv with the pinned versions. Repeated calls are cheap.
# PYTHON sets the interpreter: PYTHON=python3.13 bash launch/setup.sh
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if command -v flock >/dev/null && exec 9<launch/setup.sh; then
  flock 9 || true  # of two commands in a fresh checkout, the second waits for the first
fi
python=${PYTHON:-python3}
stamp=.venv/installed
usable='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'

if ! .venv/bin/python -c "$usable" 2>/dev/null; then
  if ! "$python" -c "$usable" 2>/dev/null; then
    found=$("$python" --version 2>&1 || true)
    echo "launch/setup.sh: Python 3.11 to 3.13 is needed, $python is: ${found:-not found}." \
      "Set PYTHON, for example: PYTHON=/path/to/python3.11 bash launch/setup.sh" >&2
    exit 1
  fi
  if [ -e .venv ]; then
    echo "launch/setup.sh: .venv has no Python 3.11 to 3.13; recreating it." >&2
  fi
  "$python" -m venv --clear .venv
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  .venv/bin/python -m ensurepip --upgrade >/dev/null || {
    echo "launch/setup.sh: pip cannot be installed into .venv: install the venv module of" \
      "$python (python3-venv on Debian) and delete .venv." >&2
    exit 1
  }
fi
if ! cmp -s requirements.txt "$stamp"; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  # --no-compile halves the time: Python compiles the files that it imports anyway.
  .venv/bin/python -m pip install --quiet --no-compile -r requirements.txt
  .venv/bin/python -m pip install --quiet --no-deps --editable .
  bash launch/bytecode.sh .venv
  cp requirements.txt "$stamp"
fi
