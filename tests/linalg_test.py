"""Matrix decompositions one at a time give the numbers of batches, without batches for a CPU."""

import pathlib
import re

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.programs import linalg

PACKAGE = pathlib.Path(apd_jax.__file__).parent
SQUARE, RIGHT = networks.normal(0, 3, 2, 4, 4), networks.normal(1, 3, 2, 4, 5)
POSITIVE = SQUARE @ SQUARE.swapaxes(-1, -2) + jnp.eye(4)
LOWER = jnp.linalg.cholesky(POSITIVE)
CASES = {
    "svd": (lambda *x: linalg.svd(*x)[1], lambda a: jnp.linalg.svd(a)[1], (RIGHT,)),
    "qr": (lambda *x: linalg.qr(*x)[0], lambda a: jnp.linalg.qr(a)[0], (RIGHT,)),
    "eigh": (lambda *x: linalg.eigh(*x)[0], lambda a: jnp.linalg.eigh(a)[0], (POSITIVE,)),
    "cholesky": (linalg.cholesky, jnp.linalg.cholesky, (POSITIVE,)),
    "solve": (linalg.solve, jnp.linalg.solve, (SQUARE, RIGHT)),
    "solve_lower": (linalg.solve_lower, jnp.linalg.solve, (LOWER, RIGHT)),
    "solve_factored": (linalg.solve_factored, lambda _, b: jnp.linalg.solve(POSITIVE, b),
        (LOWER, RIGHT)),
}  # fmt: skip
# On CPUs these are calls of LAPACK, which divide a batch over the threads.
LAPACK = {"cholesky", "eigh", "svd", "qr", "geqrf", "householder_product", "lu", "triangular_solve"}


def dimensions(jaxpr):
    """Numbers of axes of the matrices of all calls of LAPACK in a program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in LAPACK:
            found += [variable.aval.ndim for variable in equation.invars[:1]]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += dimensions(inner)
    return found


class LinalgTest(parameterized.TestCase):
    @parameterized.parameters(*CASES)
    @pytest.mark.slow
    def test_batches(self, name):
        function, batched, matrices = CASES[name]
        expected = batched(*matrices)
        np.testing.assert_allclose(function(*matrices), expected, rtol=1e-4, atol=1e-5)
        mapped = jax.jit(jax.vmap(jax.vmap(function)))
        np.testing.assert_allclose(mapped(*matrices), expected, rtol=1e-4, atol=1e-5)

    def test_one_matrix_of_a_batch_may_be_shared(self):
        mapped = jax.vmap(linalg.solve_factored, in_axes=(None, 0))
        expected = jnp.linalg.solve(POSITIVE[0, 0], RIGHT[:, 0])
        np.testing.assert_allclose(mapped(LOWER[0, 0], RIGHT[:, 0]), expected, rtol=1e-4, atol=1e-5)

    @absltest.skipIf(jax.default_backend() != "cpu", "other devices decompose batches")
    def test_no_batch_for_the_threads_of_a_cpu(self):
        for name, (function, _, matrices) in CASES.items():
            with self.subTest(name):
                for program in (function, jax.vmap(function)):
                    found = dimensions(jax.make_jaxpr(program)(*matrices).jaxpr)
                    self.assertNotEmpty(found)
                    self.assertEqual(set(found), {2})
        plain = dimensions(jax.make_jaxpr(jnp.linalg.cholesky)(POSITIVE).jaxpr)
        self.assertGreater(max(plain), 2)  # what is looked for is there

    def test_the_package_has_no_other_decompositions(self):
        pattern = re.compile(r"(?<!\w)(?:jnp|jax\.scipy|lax)\.linalg\.(?!norm\b)\w+")
        for path in sorted(PACKAGE.rglob("*.py")):
            if path != PACKAGE / "programs" / "linalg.py":
                with self.subTest(path.name):
                    self.assertEqual(pattern.findall(path.read_text()), [])


if __name__ == "__main__":
    absltest.main()
