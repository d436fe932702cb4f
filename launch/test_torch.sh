#!/usr/bin/env bash
# Run the tests that need torch and transformers, in .venv-torch.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/pinned_environment.sh .venv-torch requirements-torch.txt
exec .venv-torch/bin/python -m pytest -q tests/torch_*_test.py "$@"
