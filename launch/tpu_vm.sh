#!/usr/bin/env bash
# Create .venv if needed and run on a TPU VM; rerun after every preemption:
#   bash launch/tpu_vm.sh --config=configs/tms.py:40-10 --config.seeds=8 --workdir=$HOME/runs/tms
# Ctrl-C, or SIGTERM to this script, stops the run without a rerun: it saves and exits with 75.
set -uo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
bash "$root/launch/setup.sh" || exit 1
"$root/.venv/bin/python" -m pip install --quiet --editable "${root}[tpu]" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

set -m  # give the run its own process group, so that it gets each signal once, from this script
asked='' run=''
trap 'asked=1; [ -z "$run" ] || kill -INT "$run"' INT
trap 'asked=1; [ -z "$run" ] || kill -TERM "$run"' TERM
while :; do
  "$root/.venv/bin/python" -P -m apd_jax.main "$@" &
  run=$!
  wait "$run"
  status=$?
  while kill -0 "$run" 2>/dev/null; do  # a signal ends `wait`, but not the run
    wait "$run"
    status=$?
  done
  [ "$status" = 75 ] && [ -z "$asked" ] || exit "$status"
done
