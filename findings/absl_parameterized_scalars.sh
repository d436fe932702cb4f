#!/usr/bin/env bash
# absl-py 2.5.1: `parameterized.parameters` can't take an array without axes as a test's argument.
# It asks whether each argument is Iterable, which such an array claims to be, and unpacks it.
# Expected: a test for each of them, as for np.float32(1). Fails if that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet absl-py==2.5.1 numpy==2.4.6
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as metadata
import sys
import unittest

import numpy as np
from absl.testing import parameterized


def outcome(argument):
    try:

        class Case(parameterized.TestCase):
            @parameterized.parameters(argument, argument)
            def test_argument(self, value):
                self.assertEqual(value, 1)

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
        return "passes" if result.testsRun == 2 and result.wasSuccessful() else "fails"
    except TypeError as error:
        return f"TypeError: {error}"


scalar, array = outcome(np.float32(1)), outcome(np.array(1.0, np.float32))
print(f"absl-py {metadata.version('absl-py')}, NumPy {np.__version__}")
print(f"  np.float32(1): {scalar}; np.array(1, 'f4'): {array}")
sys.exit(0 if scalar == "passes" and array != "passes" else "this is not what was seen")
PYTHON
"$folder/venv/bin/python" "$folder/case.py"
