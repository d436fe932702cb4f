"""The byte-level language model: its text and its network."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.errors import UserError
from apd_jax.studies.language_model import text
from apd_jax.studies.language_model.network import LanguageModel, Transformer, next_byte_losses

SMALL = LanguageModel(layers=1, width=8, heads=2, mlp_width=12, context=6, text_bytes=5000)


class TextTest(absltest.TestCase):
    def test_files_are_in_one_split_only(self):
        train, held_out = text.text(20_000, False), text.text(20_000, True)
        self.assertLen(train, 20_000)
        self.assertLen(held_out, 20_000)
        self.assertNotIn(held_out[:200].tobytes(), train.tobytes())

    def test_less_is_a_first_part(self):
        np.testing.assert_array_equal(text.text(5000, False), text.text(20_000, False)[:5000])

    def test_tests_and_packages_are_left_out(self):
        for path in text.source_files():
            self.assertNotIn("site-packages", path.parts)
            self.assertNotIn("test", path.parts[-2:-1])

    def test_contexts_are_pieces_of_the_text(self):
        whole = text.text(5000, False).tobytes()
        x = SMALL.inputs(jax.random.key(0), 7)
        self.assertEqual((x.shape, x.dtype), ((7, 6), jnp.int32))
        for row in np.asarray(x, np.uint8):
            self.assertIn(row.tobytes(), whole)
        np.testing.assert_array_equal(
            x, jax.jit(SMALL.inputs, static_argnums=1)(jax.random.key(0), 7)
        )

    def test_decode(self):
        self.assertEqual(text.decode(np.frombuffer("a\n\tß".encode(), np.uint8)), "a⏎⇥ß")


class NetworkTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.params = SMALL.init(jax.random.key(0))
        self.x = SMALL.inputs(jax.random.key(1), 5)

    def test_bytes_see_only_those_before_them(self):
        logits = Transformer(2)(self.params, self.x)
        changed = Transformer(2)(self.params, self.x.at[:, 4:].set(1))
        self.assertEqual(logits.shape, (5, 6, 256))
        np.testing.assert_allclose(logits[:, :4], changed[:, :4], rtol=1e-5, atol=1e-6)
        self.assertGreater(float(jnp.abs(logits[:, 4:] - changed[:, 4:]).max()), 1e-3)

    def test_loss_is_the_mean_over_next_bytes(self):
        logits = np.asarray(Transformer(2)(self.params, self.x), np.float64)
        total = 0.0
        for row, context in zip(logits, np.asarray(self.x), strict=True):
            for place in range(5):
                total += np.log(np.exp(row[place]).sum()) - row[place, context[place + 1]]
        losses = next_byte_losses(jnp.asarray(logits, jnp.float32), self.x)
        self.assertEqual(losses.shape, (5, 5))
        np.testing.assert_allclose(SMALL.loss(self.params, self.x), total / 25, rtol=1e-5)

    def test_sites_are_the_matrices_of_the_blocks(self):
        sites = SMALL.target(self.params).sites
        expected = [f"attention/{n}" for n in ("query", "key", "value", "out")]
        expected += ["mlp/up", "mlp/down"]
        self.assertCountEqual(sites, [f"blocks/0/{name}" for name in expected])

    @parameterized.parameters(
        ({"heads": 3}, "heads must divide the width, 8, got 3"),
        ({"context": 1}, "context must be at least 2"),
        ({"text_bytes": 6}, "text_bytes must be above the context, 6"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
    )
    def test_refused(self, changes, message):
        options = {"width": 8, "heads": 2, "context": 6, "text_bytes": 5000} | changes
        with self.assertRaisesRegex(UserError, message):
            LanguageModel(**options)


if __name__ == "__main__":
    absltest.main()
