#!/usr/bin/env bash
# Reproduce the whole paper: TMS 5-2 (8 seeds) and 40-10 (3 seeds), residual MLPs of 1 and 2 layers,
# gated functions. Write an index page that links all reports.
#   launch/paper.sh                     # the robust settings, under runs/paper-robust
#   launch/paper.sh --settings=paper    # the paper's settings, under runs/paper
#   launch/paper.sh --workdir=DIR       # elsewhere
# A run that is finished is not trained again, and one that was stopped resumes.
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
settings=robust
workdir=
for argument in "$@"; do
  case $argument in
    --settings=robust | --settings=paper) settings=${argument#*=} ;;
    --workdir=?*) workdir=${argument#*=} ;;
    *)
      echo "paper.sh: got $argument; expected --settings=robust, --settings=paper or --workdir=DIR" >&2
      exit 1
      ;;
  esac
done
if [ "$settings" = robust ]; then
  workdir=${workdir:-runs/paper-robust}
  runs=(tms.py:5-2-robust:8 tms.py:40-10-robust:3 resid_mlp.py:1-robust:1 resid_mlp.py:2-robust:1
    gated_functions.py:robust:1)
else
  workdir=${workdir:-runs/paper}
  runs=(tms.py:5-2:8 tms.py:40-10:3 resid_mlp.py:1:1 resid_mlp.py:2:1 gated_functions.py:paper:1)
fi

names=()
for run in "${runs[@]}"; do
  config=${run%:*}
  name=${config/.py:/-}
  names+=("$name")
  bash "$root/launch/run.sh" "--config=configs/$config" "--config.seeds=${run##*:}" \
    "--workdir=$workdir/$name"
done
PYTHONPATH="$root" "$root/.venv/bin/python" -P -m apd_jax.run.index "$workdir" "${names[@]}"
