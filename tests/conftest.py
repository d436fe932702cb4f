"""Settings for all tests; they have to stand before JAX is imported."""

import gc
import os

# The networks here are tiny: nearly all time goes into compiling, so ask for quick compilation.
# Of two ways to emit kernels on CPUs, the older one takes half as long.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

# Tracing makes many small objects; looking through all of them for cycles that often is in vain.
gc.set_threshold(100_000, 20, 50)
