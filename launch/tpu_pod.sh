#!/usr/bin/env bash
# Run an experiment on all hosts of a TPU slice, from any machine with gcloud and a git checkout:
#   launch/tpu_pod.sh NAME ZONE ACCELERATOR [--spot] -- --config=configs/tms.py:40-10 --workdir=DIR
#   launch/tpu_pod.sh NAME ZONE delete
# Such as NAME=apd, ZONE=us-central2-b, ACCELERATOR=v4-32. DIR is a path on every host: of a disk
# that all share, so that any slice can resume the run. The slice is asked for as a queued resource,
# and again after each preemption of a --spot one; it stays until `delete`. RUNTIME is the software
# of the hosts, POLL the seconds between two looks at the queue.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
usage() {
  sed -n '2,4s/^# *//p' launch/tpu_pod.sh >&2
  exit 1
}
[ $# -ge 3 ] || usage
name=$1 zone=--zone=$2 accelerator=$3
shift 3
queue=(gcloud compute tpus queued-resources)
hosts=(gcloud compute tpus tpu-vm)

release() { "${queue[@]}" delete "$name" "$zone" --force --quiet; }
if [ "$accelerator" = delete ]; then
  release
  exit
fi
spot=()
if [ "${1:-}" = --spot ]; then
  spot=(--spot)
  shift
fi
[ "${1:-}" = -- ] || usage
shift

request() {
  "${queue[@]}" create "$name" "$zone" --node-id="$name" --accelerator-type="$accelerator" \
    --runtime-version="${RUNTIME:-tpu-ubuntu2204-base}" "${spot[@]}"
}
# What there is none of, or what cannot be asked about, has no state.
state() { "${queue[@]}" describe "$name" "$zone" --format='value(state.state)' 2>/dev/null || true; }

wait_until_active() {
  while :; do
    case $(state) in
      ACTIVE) return ;;
      '') request ;;
      SUSPENDED | FAILED)
        release
        request
        ;;
    esac
    sleep "${POLL:-30}"
  done
}

archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" HEAD
# tpu_vm.sh installs what is missing, and reruns the command where the hosts are asked to stop.
run="mkdir -p apd_jax && tar -xf apd_jax.tar -C apd_jax && cd apd_jax"
run+=" && { command -v python3.11 >/dev/null || { sudo apt-get -qq update"
run+=" && sudo apt-get -qq install -y python3.11-venv; }; }"
run+=" && PYTHON=python3.11 exec bash launch/tpu_vm.sh --distributed$(printf ' %q' "$@")"
while :; do
  wait_until_active
  "${hosts[@]}" scp "$archive" "$name:apd_jax.tar" "$zone" --worker=all --quiet &&
    "${hosts[@]}" ssh "$name" "$zone" --worker=all --quiet --command="$run" && exit 0
  status=$?
  sleep "${POLL:-30}"  # a preemption shows a little later
  [ "$(state)" = ACTIVE ] && exit "$status"
  echo "tpu_pod.sh: $name is gone; asking for another slice, on which the run resumes." >&2
done
