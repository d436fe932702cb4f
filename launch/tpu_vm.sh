#!/usr/bin/env bash
# Set up and run on a TPU VM, again after every preemption:
#   bash launch/tpu_vm.sh --config=configs/tms.py:40-10 --config.seeds=8 --workdir=$HOME/runs/tms
set -uo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh || exit 1
.venv/bin/python -m pip install --quiet --editable ".[tpu]" || exit 1
while :; do
  .venv/bin/python -m apd_jax.main "$@"
  status=$?
  [ "$status" = 75 ] || exit "$status"
done
