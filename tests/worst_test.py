"""The examples that are explained worst: a rare mechanism without a component is named."""

import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.components import Factors
from apd_jax.objective.distances import distance


def untrained(apply_fn, params, components, **fields):
    """A decomposition that was not trained."""
    settings = apd_jax.Settings(
        objective=apd_jax.Objective(topk=1.0, **fields),
        num_components=len(next(iter(components.values())).reads),
        batch_size=100,
    )
    return apd_jax.Decomposition(apd_jax.Target(apply_fn, params), components, settings)


def linear(params, x):
    return x @ params["w"]


class RareMechanismTest(parameterized.TestCase):
    def test_one_example_in_ten_thousand_is_named(self):
        """Six features, the last of them on one example, and components for the first five."""
        rng = np.random.default_rng(0)
        x = np.zeros((10_000, 6), np.float32)
        x[np.arange(len(x)), rng.integers(0, 5, len(x))] = rng.uniform(0.5, 1, len(x))
        x[7321] = np.eye(6)[5]
        reads = np.eye(6, dtype=np.float32)[:5, None]
        found = untrained(linear, {"w": np.eye(6)}, {"w": Factors(0.97 * reads, reads)})
        summary = found.summary(x, baselines=())
        worst = summary.errors.worst
        self.assertEqual((worst[0].example, worst[0].position, len(worst)), (7321, (), 5))
        self.assertAlmostEqual(worst[0].error, 1 / 6, places=5)
        self.assertGreater(worst[0].times_median, 1000)
        self.assertLess(worst[1].times_median, 3)
        self.assertAlmostEqual(summary.errors.share_far, 1e-4)
        self.assertRegex(repr(summary), r"Explained worst.*: 7321 \(1.97e\+03\), .*0.01% of all")
        self.assertEqual(
            json.loads(json.dumps(summary.to_dict()))["errors"]["worst"][0]["example"], 7321
        )

    def test_nothing_is_explained_badly_where_there_is_no_error(self):
        found = untrained(linear, {"w": np.eye(3)}, {"w": Factors.from_matrices(jnp.eye(3)[None])})
        summary = found.summary(np.eye(3, dtype="f4").repeat(50, axis=0), baselines=())
        self.assertEqual(summary.errors.worst, ())
        self.assertNotIn("worst,", repr(summary))


def tokens(params, x):
    return jnp.tanh(params["embed"][x["token"]]) @ params["out"]


def halves(params, x):
    outputs = tokens(params, x)
    return {"a": outputs[..., :2], "b": (outputs[..., 2:],)}


class RowsTest(parameterized.TestCase):
    """Errors of rows are those of batches of one, for every kind of output; padding has none."""

    @parameterized.named_parameters(
        ("mse", tokens, {}),
        ("outputs", halves, {}),
        ("loss", tokens, {"minimality_loss": lambda a, b: jnp.abs(a - b).mean((1, 2))}),
        ("positions", tokens, {"minimality_loss": "kl", "per_position": True}),
    )
    def test_literal(self, apply_fn, fields):
        params = {"embed": networks.normal(0, 7, 3), "out": networks.normal(1, 3, 4)}
        x = {
            "token": np.random.default_rng(0).integers(0, 7, (9, 5)),
            "mask": np.random.default_rng(1).random((9, 5)) < 0.6,
        }
        x["mask"][3] = False  # of one example nothing counts

        def valid(batch):
            return batch["mask"]

        components = networks.components(apd_jax.Target(apply_fn, params, inputs=x))
        found = untrained(apply_fn, params, components, valid=valid, **fields)
        seen = found.see(x)
        outputs = apd_jax.masked_apply(found.target, components, x, found.mask(x)), found.target(x)
        expected = {}
        for i in range(9):
            for t in range(5) if found.objective.per_position else [...]:
                counts = x["mask"][i, t]
                here = np.reshape(counts, (1, -1))
                pair = jax.tree.map(
                    lambda leaf, i=i, t=t, n=here.size: leaf[i, t].reshape(1, n, -1), outputs
                )
                if here.any():
                    place = (i,) if t is ... else (i, t)
                    expected[place] = float(
                        distance(found.objective.minimality_loss, *pair, jnp.asarray(here))
                    )
        np.testing.assert_allclose(seen.errors, list(expected.values()), rtol=1e-5, atol=1e-8)
        spread = found.summary(x, baselines=()).errors
        named = [(worst.example, *worst.position) for worst in spread.worst]
        self.assertEqual(named, sorted(expected, key=lambda place: -expected[place])[:5])
        self.assertAlmostEqual(spread.median, np.median(list(expected.values())), places=5)

    @parameterized.named_parameters(
        ("fails", lambda a, b: jnp.mean((a - b)[:8].reshape(8, 4) ** 2)),
        ("nan", lambda a, b: jnp.mean((a - b) ** 2 / b.var(axis=0))),
    )
    def test_a_loss_of_batches_alone(self, loss):
        """It has no value for a single example; the rest of the summary has."""
        params = {"w": networks.normal(0, 3, 4)}
        x = networks.normal(1, 50, 3)
        components = networks.components(apd_jax.Target(linear, params, inputs=x))
        found = untrained(linear, params, components, minimality_loss=loss)
        summary = found.summary(x, baselines=())
        self.assertIsNone(summary.errors)
        self.assertIn("errors", [finding.kind for finding in summary.findings])
        self.assertTrue(np.isfinite(summary.active.error))


if __name__ == "__main__":
    absltest.main()
