#!/usr/bin/env bash
# Run one experiment in N processes on this machine's CPU, each with one device:
#   bash launch/local_processes.sh 4 --config=configs/tms.py:40-10 --workdir=runs/tms
# Signals are passed on to all processes. Status 75: the run was stopped and is saved; rerunning the
# command resumes it, with any number of processes.
set -uo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local_processes.sh: the first argument is the number of processes, got '$count'." >&2
  exit 1
fi
shift
bash "$root/launch/setup.sh" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" JAX_PLATFORMS=cpu
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'
port=$("$root/.venv/bin/python" -c "$free_port") || exit 1

runs=()
trap 'kill -TERM "${runs[@]}" 2>/dev/null' TERM
trap 'kill -INT "${runs[@]}" 2>/dev/null' INT
set -m  # give every process its own group, so that it gets each signal once, from this script
for ((i = 0; i < count; i++)); do
  "$root/.venv/bin/python" -P -m apd_jax.main --coordinator="localhost:$port" \
    --num_processes="$count" --process_id="$i" "$@" &
  runs+=($!)
done

# JAX ends the other processes when one is lost, except while they still wait for each other to start.
half_seconds=0
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do
  sleep 0.5
  [ "$(jobs -rp | wc -l)" = "$count" ] || half_seconds=$((half_seconds + 1))
  if [ "$half_seconds" = 100 ]; then
    echo "launch/local_processes.sh: a process ended 50 s ago; ending those that still run." >&2
    kill -KILL "${runs[@]}" 2>/dev/null
  fi
done

status=0
for ((i = 0; i < count; i++)); do
  wait "${runs[i]}"
  found=$?
  if [ "$found" -gt 128 ]; then
    echo "launch/local_processes.sh: process $i was ended by signal $((found - 128)); JAX ends the" \
      "others with SIGABRT (6) when one is lost. Rerun the command to resume." >&2
  fi
  # What says most about the run: another failure before a stop, a stop before success.
  if [ "$found" != 0 ] && { [ "$status" = 0 ] || [ "$status" = 75 ]; }; then
    status=$found
  fi
done
exit "$status"
