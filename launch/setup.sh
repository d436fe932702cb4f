#!/usr/bin/env bash
# Make a virtual environment in .venv with exactly the versions that were tested. Repeating is cheap.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
stamp=.venv/installed
[ -x .venv/bin/python ] || "$python" -m venv .venv
if ! cmp -s requirements.txt "$stamp"; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
  cp requirements.txt "$stamp"
fi
