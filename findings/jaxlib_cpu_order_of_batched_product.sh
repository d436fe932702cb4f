#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: a batched product of a large and a small array takes several times longer
# when einsum names the axis of the small one first in the result. [200, 64, 1024] times
# [200, 4, 1024] over the last axis: "csd,crd->crs" transposes the large array (52 MB) first,
# "csd,crd->csr" the small one. The numbers are the same.
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/product.py" <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np

draw = np.random.default_rng(0).standard_normal
large = jnp.asarray(draw((200, 64, 1024)), jnp.float32)
small = jnp.asarray(draw((200, 4, 1024)), jnp.float32)


def product(pattern):
    return jax.jit(lambda large, small: jnp.einsum(pattern, large, small))


def seconds(run):
    run(large, small).block_until_ready()
    found = []
    for _ in range(7):
        start = time.process_time()
        run(large, small).block_until_ready()
        found.append(time.process_time() - start)
    return min(found)


first, last = product("csd,crd->crs"), product("csd,crd->csr")
assert jnp.allclose(first(large, small), last(large, small).swapaxes(1, 2), rtol=1e-4, atol=1e-3)
ratio = seconds(first) / seconds(last)
print(f"jaxlib {jax.lib.__version__}: the small axis first takes {ratio:.1f} times as long")
raise SystemExit(ratio < 1.7)
PYTHON
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/product.py"
# Seen (x86-64, 2 cores):
#   jaxlib 0.10.2: the small axis first takes 10.2 times as long
