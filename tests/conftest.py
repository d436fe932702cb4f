"""Settings for all tests; they have to stand before JAX is imported."""

import os

# The networks here are tiny: nearly all time goes into compiling, so ask for quick compilation.
# Of two ways to emit kernels on CPUs, the older one takes half as long.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
