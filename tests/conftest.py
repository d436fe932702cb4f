"""Settings for all tests; they have to stand before JAX is imported."""

import functools
import gc
import itertools
import os
import pathlib
import sys

# The networks here are tiny: nearly all time goes into compiling, so ask for quick compilation.
# Of two ways to emit kernels on CPUs, the older one takes half as long. Every worker has a core: to
# cut programs into parts that compile side by side only adds to the work.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

# Tracing makes many small objects; looking through all of them for cycles that often is in vain.
gc.set_threshold(100_000, 20, 50)

_MOST_MAPPINGS = 30_000  # Linux allows a process 65,530 of its memory; beyond, compiling crashes
_tests = itertools.count(1)


def pytest_configure(config):
    """Keep compiled programs beside what pytest keeps, for the workers and for the next run."""
    if hasattr(config, "cache"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


def pytest_runtest_setup():
    """Draw the same torch weights in whatever order tests run; make lowering cheap."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)  # layers draw their weights from the global generator
    _share_mlir_context()


def _share_mlir_context():
    """Let all programs share one MLIR context, whose making is a third of a lowering."""
    from jax._src.interpreters import mlir  # not before the settings above
    from jaxlib.mlir import ir

    fresh = getattr(mlir, "make_ir_context", None)
    if fresh is None:  # a private name, which other versions of JAX may lack
        return
    fresh = getattr(fresh, "fresh", fresh)
    shared = functools.cache(fresh)

    def context():
        # A program that is lowered within the lowering of another needs a context of its own.
        return shared() if ir.Context.current is None else fresh()

    context.fresh = fresh
    mlir.make_ir_context = context


def pytest_runtest_teardown():
    """Forget compiled programs before they have filled the table of the process's mappings."""
    maps = pathlib.Path("/proc/self/maps")
    if next(_tests) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPPINGS:
        import jax  # not before the settings above

        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Begin with what takes longest; keep together what shares a set-up or a network.

    A worker begins with the first tests, and the others steal from the end of its list: a class
    whose tests share a set-up stays in one worker where it comes early.
    """

    def place(item):
        shares_set_up = "setUpClass" in vars(item.cls or object)
        of_zoo = item.path.name.startswith("zoo") and hasattr(item, "callspec")
        network = item.callspec.params.get("name", "") if of_zoo else ""
        return not shares_set_up, item.path.name != "full_size_test.py", network

    items.sort(key=place)
