#!/usr/bin/env bash
# Compile an environment and this package to bytecode where Python is told not to keep what it
# compiles, as in many container images: each start would compile all imports again, for 10 seconds.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then
  # Libraries carry files that are not meant for this version of Python: these fail.
  "$1/bin/python" -m compileall -qq -j 0 "$1/lib" apd_jax >/dev/null || true
fi
