#!/usr/bin/env bash
# Set up and run on a TPU VM, again after every preemption:
#   bash launch/tpu_vm.sh --config=configs/tms.py:40-10 --config.seeds=8 --workdir=$HOME/runs/tms
# Ctrl-C, or SIGTERM to this script, stops the run for good: it saves, and the status is 75.
set -uo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
bash "$root/launch/setup.sh" || exit 1
"$root/.venv/bin/python" -m pip install --quiet --editable "${root}[tpu]" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

set -m  # the run in a process group of its own, so that it gets each signal once: from here
asked='' run=''
trap 'asked=1; [ -z "$run" ] || kill -INT "$run"' INT
trap 'asked=1; [ -z "$run" ] || kill -TERM "$run"' TERM
while :; do
  "$root/.venv/bin/python" -P -m apd_jax.main "$@" &
  run=$!
  wait "$run"
  status=$?
  while kill -0 "$run" 2>/dev/null; do  # a signal ends `wait`, not the run
    wait "$run"
    status=$?
  done
  [ "$status" = 75 ] && [ -z "$asked" ] || exit "$status"
done
