#!/usr/bin/env bash
# Create or update a virtual environment with exactly the versions of a requirements file:
#   launch/pinned_environment.sh .venv-torch requirements-torch.txt
# with this package, or without it:
#   launch/pinned_environment.sh .venv-docs requirements-docs.txt --without-package
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
environment=$1 requirements=$2 package=${3:-}
if ! cmp -s "$requirements" "$environment/installed"; then
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  "${PYTHON:-python3}" -m venv --clear "$environment"
  "$environment/bin/python" -m pip install --quiet --no-compile -r "$requirements"
  if [ "$package" != --without-package ]; then
    "$environment/bin/python" -m pip install --quiet --no-deps --editable .
    bash launch/bytecode.sh "$environment"
  fi
  "$environment/bin/python" -m pip check
  cp "$requirements" "$environment/installed"
fi
