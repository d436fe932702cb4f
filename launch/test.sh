#!/usr/bin/env bash
# Create .venv if needed, then run the tests: launch/test.sh -m "not slow" for the fast ones.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/setup.sh
exec .venv/bin/python -m pytest -q "$@"
