#!/usr/bin/env bash
# Create .venv if needed, then run an experiment: launch/run.sh --config=configs/tms.py:40-10 ...
# Relative paths are relative to the current directory.
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
bash "$root/launch/setup.sh"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$root/.venv/bin/python" -P -m apd_jax.main "$@"
