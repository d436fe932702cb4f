#!/usr/bin/env bash
# Write the bytecode of an environment and of this package: launch/bytecode.sh .venv
# Only where PYTHONDONTWRITEBYTECODE is set, as in many container images. Python keeps no bytecode
# there, so that every process would compile all modules that it imports.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  # Some libraries have files for other versions of Python, which do not compile.
  "$1/bin/python" -m compileall -qq -j 0 "$1/lib" apd_jax >/dev/null || true
fi
