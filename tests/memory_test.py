"""Memory: what is freed goes back, data are read as needed, and a finished call leaves nothing."""

import pathlib
import platform
import subprocess
import sys
import tempfile

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

SETTINGS = """
import gc, resource, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
import apd_jax

OPTIONS = dict(num_components=4, rank=1, topk=1.0, refine={"every": 0}, relative_losses=False)

def decompose(data, function, shape, **options):
    weights = {"w": jax.random.normal(jax.random.key(0), shape) / 100}
    return apd_jax.decompose(apd_jax.Target(function, weights), data, **OPTIONS, **options)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
"""
MAPPED = """
network = lambda p, x: x.astype("float32") @ p["w"]
mapped = np.memmap(sys.argv[1], np.uint8, "w+", shape=(100_000, 6144))
mapped[::50] = np.random.default_rng(0).integers(0, 255, (2000, 6144))
mapped.flush()
mapped = np.memmap(sys.argv[1], np.uint8, "r", shape=(100_000, 6144))
options = dict(steps=100, batch_size=32)
first = decompose(np.ones((64, 6144), np.uint8), network, (6144, 4), **options)
before = peak()
decompose(mapped, network, (6144, 4), **options)
print(peak() - before)
"""
LOADER = """
network = lambda p, x: x.mean((1, 2)) @ p["w"]
images = lambda count: (np.ones((64, 128, 128, 3), "f4") for _ in range(count))
decompose(images(5), network, (3, 4), steps=2, chunk_steps=1)
before = peak()
decompose(images(100), network, (3, 4), steps=50, chunk_steps=50)
print(peak() - before)
"""
CALLS = """
def mappings():
    return len(open("/proc/self/maps").readlines())

def call(i):
    # Networks and metrics are functions of their own, and hold arrays.
    rows, held = np.full((50_000, 10), i, np.float32), jnp.full(500_000, float(i))
    rows[:64] += np.random.default_rng(i).normal(size=(64, 10))
    with tempfile.TemporaryDirectory() as directory:
        found = decompose(
            rows,
            lambda p, x: x @ p["w"] + held[:4],
            (10, 4),
            steps=5,
            metric=lambda y: y + held[0],
            workdir=None if i else f"{directory}/first",
        )
    found.summary(rows[:64], baselines=())
    found(rows[:64]), found.ablate(rows[:64], 0), found.edited({0: 0.0})

found = []
for i in range(6):
    call(i)
    gc.collect()
    found.append((mappings(), len(jax.live_arrays())))
large = [a for a in jax.live_arrays() if a.nbytes > 10**6]
assert len(large) <= 2, "data of more than the latest network stay"
maps, arrays = (max(kind) - min(kind) for kind in zip(*found[3:]))
# A program that stays has 190 mappings; the allocator's own come and go by a few.
print(max(maps // 10, arrays))
"""


def run(program, *arguments):
    """The number that a program prints, run in a process of its own."""
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-c", program, *arguments]
    shown = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return int(shown.split()[-1])


@absltest.skipUnless(pathlib.Path("/proc/self/maps").exists(), "needs Linux")
class DataTest(absltest.TestCase):
    @pytest.mark.slow
    def test_megabytes_for_a_mapped_file_of_600(self):
        with tempfile.TemporaryDirectory() as directory:
            found = run(SETTINGS + MAPPED, f"{directory}/rows")
        self.assertLess(found, 250)

    @pytest.mark.slow
    def test_a_loader_of_images_holds_few_batches(self):
        self.assertLess(run(SETTINGS + LOADER), 20 * 12)  # a chunk has 600 MB

    @pytest.mark.slow
    def test_calls_leave_no_arrays_and_no_mappings(self):
        self.assertLessEqual(run(SETTINGS + CALLS), 5)


@absltest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
class ReturnTest(parameterized.TestCase):
    # Trimming may also return what the process had before.
    @parameterized.parameters(("on", -25_000, 5_000), ("off", 15_000, 30_000))
    @pytest.mark.slow
    def test_kilobytes_kept(self, switch, least, most):
        self.assertBetween(run(PROGRAM, switch), least, most)


if __name__ == "__main__":
    absltest.main()
