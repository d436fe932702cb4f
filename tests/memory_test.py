"""Freed arrays go back to the system although something behind them in the heap is still in use."""

import pathlib
import platform
import subprocess
import sys

import pytest
from absl.testing import absltest, parameterized

PROGRAM = """
import sys
import numpy as np
from apd_jax.runtime import memory

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

first = np.ones(6_000_000, np.float32)
del first  # from now on glibc would keep arrays of this size
before = resident()
second = np.ones(5_500_000, np.float32)
behind = np.ones(20_000, np.float32)
del second
if sys.argv[1] == "on":
    memory.give_back()
print(resident() - before)
"""


@absltest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
class ReturnTest(parameterized.TestCase):
    @parameterized.parameters(("on", -5_000, 5_000), ("off", 15_000, 30_000))
    @pytest.mark.slow
    def test_kilobytes_kept(self, switch, least, most):
        command = [sys.executable, "-c", PROGRAM, switch]
        root = pathlib.Path(__file__).parent.parent
        kept = int(subprocess.run(command, cwd=root, check=True, capture_output=True).stdout)
        self.assertBetween(kept, least, most)


if __name__ == "__main__":
    absltest.main()
