"""Taking site inputs apart into rows times fixed matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.attribution import association
from apd_jax.studies.resid_mlp.network import ResidualMLP


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


class FactorTest(parameterized.TestCase):
    def test_residual_stream(self):
        embed, read, write = draw(0, 3, 9), draw(1, 9, 2), draw(2, 2, 9)

        def function(x):
            first = x @ embed
            return [first, first + jax.nn.relu(first @ read) @ write]

        x = draw(3, 5, 3)
        expected = function(x)
        with jax.disable_jit():
            first, second = association.reassociate(function, x)
        self.assertEqual(first.rows.shape, (5, 3))
        self.assertEqual(second.rows.shape, (5, 3 + 2))
        for factored, value in zip((first, second), expected, strict=True):
            np.testing.assert_allclose(factored.rows @ factored.matrix, value, rtol=1e-5, atol=1e-5)

    def test_chains_transposes_and_sequences(self):
        a, b = draw(0, 3, 4), draw(1, 6, 4)
        x = draw(2, 5, 7, 3)
        (factored,) = association.reassociate(
            lambda x: [jax.lax.dot_general(x @ a, b, (((2,), (1,)), ((), ())))], x
        )
        self.assertEqual(factored.rows.shape, (5, 7, 3))
        np.testing.assert_allclose(
            factored.rows @ factored.matrix, x @ a @ b.T, rtol=1e-5, atol=1e-5
        )

    @parameterized.parameters(
        (lambda x: x,),
        (lambda x: x @ jnp.ones((3, 3)) + x,),
        (lambda x: jnp.tanh(x @ jnp.ones((3, 4))),),
        (lambda x: x @ jnp.ones((3, 4)) + 1.0,),
        (lambda x: x @ x.T,),
    )
    def test_what_is_no_such_product(self, function):
        self.assertEqual(association.reassociate(lambda x: [function(x)], draw(0, 5, 3)), [None])


class AttributionsTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 3)
    @pytest.mark.slow
    def test_wide_residual_stream(self, layers):
        module = ResidualMLP(4, 60, (3,) * layers)
        x = draw(1, 32, 4)
        variables = module.init(jax.random.key(0), x)
        target = apd_jax.Target.from_flax(module, variables, "layers_*/mlp_*", inputs=x)
        components = apd_jax.init_components(jax.random.key(1), target, num_components=3, scale=9.0)
        scores = jax.jit(apd_jax.gradient_attributions, static_argnames="mode")
        narrow = []
        original = association.reassociate

        def spy(function, x):
            narrow.append([f.rows.shape[-1] if f else None for f in original(function, x)])
            return original(function, x)

        association.reassociate = spy
        try:
            fast = scores(target, components, x, mode="forward")
        finally:
            association.reassociate = original
        widths = [width for i in range(layers) for width in (4 + 3 * i, None)]
        self.assertEqual(narrow, [widths])
        literal = scores(target, components, x, mode="literal")
        np.testing.assert_allclose(fast, literal, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
