"""Settings for all tests; they have to stand before JAX is imported."""

import os

# The networks here are tiny: nearly all time goes into compiling, so ask for quick compilation.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
