#!/usr/bin/env bash
# Run the fast tests with the lowest versions that setup.cfg allows, in .venv-lowest.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/pinned_environment.sh .venv-lowest requirements-lowest.txt
# Use the fusion emitters, as in every real run; tests/conftest.py turns them off to save time.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_use_fusion_emitters=true"
exec .venv-lowest/bin/python -m pytest -q -m "not slow" "$@"
