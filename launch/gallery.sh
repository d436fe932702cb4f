#!/usr/bin/env bash
# Run studies and examples, and build the documentation with their reports; without names, list them:
#   launch/gallery.sh tms-5-2 linear_map
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/setup.sh
PYTHONPATH=$PWD .venv/bin/python -P docs/evidence_runs.py "$@"
if [ $# -gt 0 ]; then
  bash launch/docs.sh
fi
