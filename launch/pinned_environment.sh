#!/usr/bin/env bash
# Create or update a virtual environment with exactly the versions of a requirements file:
#   launch/pinned_environment.sh .venv-torch requirements-torch.txt
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
environment=$1 requirements=$2
if ! cmp -s "$requirements" "$environment/installed"; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  "${PYTHON:-python3}" -m venv --clear "$environment"
  "$environment/bin/python" -m pip install --quiet --no-compile -r "$requirements"
  "$environment/bin/python" -m pip install --quiet --no-deps --editable .
  "$environment/bin/python" -m pip check
  cp "$requirements" "$environment/installed"
fi
