#!/usr/bin/env bash
# Set up if needed, then run an experiment: launch/run.sh --config=configs/tms.py:40-10 ...
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh
exec .venv/bin/python -m apd_jax.main "$@"
