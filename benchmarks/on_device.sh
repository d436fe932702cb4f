#!/usr/bin/env bash
# Check a GPU or TPU in at most 8 minutes and write one JSON file, runs/on_device.json by default:
#   bash benchmarks/on_device.sh [--small] [--out=FILE]
# --small takes small networks, for CPUs. PYTHON is an interpreter with apd_jax and jax for the
# device; .venv/bin/python of the checkout by default. LIMIT is the time in seconds.
set -uo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
python=${PYTHON:-$root/.venv/bin/python}
[[ " $* " == *" --out"* ]] || set -- "$@" --out="$root/runs/on_device.json"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# What the first parts have written stays if the time is up.
exec timeout --signal=INT --kill-after=10 "${LIMIT:-470}" "$python" -m benchmarks.on_device "$@"
