#!/usr/bin/env bash
# absl-py 2.5.1 with pytest 9.2.0: a mark above @parameterized.parameters is lost without a warning.
# The tests that are made from the parameters don't have it, so that -m "not slow" runs them. A mark
# below the parameters is kept. Expected: both are kept. Fails if they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet absl-py==2.5.1 pytest==9.2.0
cat > "$folder/test_marks.py" <<'PYTHON'
import pytest
from absl.testing import parameterized


class MarksTest(parameterized.TestCase):
    @pytest.mark.slow
    @parameterized.parameters(1, 2)
    def test_above(self, number):
        pass

    @parameterized.parameters(1, 2)
    @pytest.mark.slow
    def test_below(self, number):
        pass
PYTHON
printf '[pytest]\nmarkers = slow: takes long\n' > "$folder/pytest.ini"
cd "$folder"
"$folder/venv/bin/pip" list 2>/dev/null | grep -E '^(absl-py|pytest) '
chosen=$("$folder/venv/bin/python" -m pytest -q --collect-only -m "not slow" test_marks.py | grep '::' || true)
echo "$chosen"
if [ "$(grep -c above <<< "$chosen")" = 2 ] && ! grep -q below <<< "$chosen"; then
  echo "as recorded"
else
  echo "this has changed"
  exit 1
fi
