"""A fault of XLA on CPUs that gives wrong numbers without an error, and how it is avoided.

In jaxlib 0.10.2 a product of a matrix product with a broadcast array, summed over its last axis,
is compiled wrongly where it has about 4096 rows or more: a gradient through an RMS norm, pulled
back for several directions at once, is off by a third. It is right op by op, in smaller arrays,
and in jaxlib 0.10.1 and before. The cause is the fusion of sums into calls of the library YNNPACK,
which a flag of XLA turns off. (Restricting the library to matrix products is no alternative: some
programs then never end.)
"""

import importlib.metadata
import os
import warnings

_FAULTY = ("0.10.2",)
_FLAG = "xla_cpu_experimental_ynn_fusion_type"
_SETTING = f"--{_FLAG}="


def avoid() -> None:
    """Set XLA's flag if this jaxlib has the fault; flags are read when JAX first computes.

    A choice of the user for the same flag stays. No other version gets the flag, since XLA ends a
    process that has a flag it does not know.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    named_file = flags and not flags.lstrip().startswith("--")
    if _is_faulty() and _FLAG not in flags and not named_file:
        os.environ["XLA_FLAGS"] = f"{flags} {_SETTING}".strip()


def warn_if_too_late() -> None:
    """Warn if JAX computed before the flag was set and has the fault."""
    import jax
    from jax._src import xla_bridge

    started = getattr(xla_bridge, "backends_are_initialized", lambda: False)()
    if _is_faulty() and started and jax.default_backend() == "cpu" and is_present():
        warnings.warn(
            "JAX computed something before apd_jax was imported, and jaxlib "
            f"{importlib.metadata.version('jaxlib')} then compiles some sums wrongly on CPUs: "
            "attributions of networks with RMS norms can be off by a third. Import apd_jax before "
            f"JAX computes anything, or start Python with XLA_FLAGS={_SETTING}",
            RuntimeWarning,
            stacklevel=2,
        )


def is_present() -> bool:
    """Compile a small program of the kind, and compare it with the same numbers op by op."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    draw = np.random.default_rng(0).standard_normal
    directions, weight, rows = (
        draw(shape).astype("f4") for shape in ((8, 8, 64 * 32), (16, 32), (8, 64, 16))
    )

    def normed(h):
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + 1e-6)
        return (h * scale @ weight).reshape(len(h), -1)

    def pulled(h, v):
        _, push = jax.linearize(normed, h)
        return jax.vmap(jax.linear_transpose(push, h))(v)[0]

    found, expected = jax.jit(pulled)(rows, directions), pulled(jnp.asarray(rows), directions)
    return not np.allclose(found, expected, rtol=1e-2, atol=1e-2)


def _is_faulty() -> bool:
    return importlib.metadata.version("jaxlib") in _FAULTY
