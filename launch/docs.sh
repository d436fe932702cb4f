#!/usr/bin/env bash
# Build the documentation into build/site with .venv-docs; any warning is an error. To see it while
# editing: launch/docs.sh serve
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
bash launch/pinned_environment.sh .venv-docs requirements-docs.txt --without-package
export NO_MKDOCS_2_WARNING=1  # an advertisement for its successor
exec .venv-docs/bin/python -m mkdocs "${1:-build}" --quiet --strict "${@:2}"
