"""Losses against their definitions in numpy."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax import sites
from apd_jax.components import Factors
from apd_jax.objective import distances, losses, lp_losses
from apd_jax.sites import Placement, SiteRecord

PLACE = Placement("w", False, False, None, None, None, 1.0)


def arrays():
    """A TMS with one hidden layer, its components, and how often its sites are used."""
    target = networks.tms(1)
    return target, networks.components(target), {"linear1/kernel": 2, "hidden_0/kernel": 1}


def close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol)


class FaithfulnessTest(absltest.TestCase):
    def test_definition(self):
        target, components, uses = arrays()
        total, count = 0.0, 0
        for site, weight in target.weights.items():
            parts = np.asarray(networks.matrices(components)[site], np.float64)
            total += uses[site] * np.sum((np.asarray(weight) - parts.sum(axis=0)) ** 2)
            count += uses[site] * weight.size
        self.assertEqual(count, 2 * 8 + 4)
        close(losses.faithfulness(components, target.weights, uses), total / count)

    def test_zero_for_components_that_sum_to_the_target(self):
        target, components, uses = arrays()
        sums = {site: factors.sum() for site, factors in components.items()}
        self.assertEqual(float(losses.faithfulness(components, sums, uses)), 0.0)


class OutputTest(parameterized.TestCase):
    def test_mse(self):
        a, b = networks.normal(0, 5, 3), networks.normal(1, 5, 3)
        close(losses.output_mse(a, b), np.mean((np.asarray(a) - np.asarray(b)) ** 2))

    def test_kl(self):
        logits, target = networks.normal(0, 5, 3), networks.normal(1, 5, 3)
        p = np.exp(np.asarray(target, np.float64))
        q = np.exp(np.asarray(logits, np.float64))
        p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
        close(losses.output_kl(logits, target), np.mean(np.sum(p * np.log(p / q), axis=1)))
        self.assertAlmostEqual(float(losses.output_kl(logits + 3, logits)), 0, places=6)

    @parameterized.product(kind=("mse", "kl"), dtype=(jnp.bfloat16, jnp.float16))
    def test_outputs_of_half_precision(self, kind, dtype):
        target = networks.normal(0, 64, 50).astype(dtype)
        outputs = (target + 0.03 * networks.normal(1, 64, 50)).astype(dtype)
        wide = outputs.astype(jnp.float32), target.astype(jnp.float32)
        for name in (f"output_{kind}", f"{kind}_parts"):
            function = getattr(losses, name)
            np.testing.assert_array_equal(function(outputs, target), function(*wide))

    def test_large_outputs_of_float16_have_finite_squares(self):
        outputs = jnp.array([[300.0, -300.0]], jnp.float16)
        self.assertEqual(float(losses.output_mse(outputs, -outputs)), 600.0**2)


class RowsTest(parameterized.TestCase):
    @parameterized.parameters(0, 1)
    def test_an_output_without_entries_adds_nothing(self, axes):
        outputs, theirs = networks.normal(0, 4, 3, 2), networks.normal(1, 4, 3, 2)
        empty = outputs[..., :0]
        rows = distances.of_each_row("mse", axes, (outputs, empty), (theirs, empty))
        expected = (outputs - theirs) ** 2
        expected = expected.reshape(12 if axes else 4, -1).mean(axis=1)
        np.testing.assert_allclose(rows, expected, rtol=1e-5)


class SimplicityTest(parameterized.TestCase):
    @parameterized.parameters(0.5, 0.9, 1.0, 2.0)
    def test_definition(self, p):
        _, components, uses = arrays()
        mask = np.random.default_rng(0).random((7, 3)) < 0.5
        total = 0.0
        for b in range(7):
            for c in np.flatnonzero(mask[b]):
                for site, factors in components.items():
                    U, V = np.asarray(factors.U[c], np.float64), np.asarray(factors.V[c])
                    for r in range(U.shape[1]):
                        norms = np.sum(U[:, r] ** 2) * np.sum(V[r] ** 2)
                        total += uses[site] * (norms + 1e-16) ** (p / 2)
        found = losses.simplicity(components, mask.sum(axis=0), p=p, uses=uses, batch_size=7)
        close(found, total / (20 * 7))

    def test_power_two_is_the_frobenius_norm_of_orthogonal_factors(self):
        values = np.array([3.0, 0.5])
        U, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 2)))
        V, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 2)))
        factors = Factors.from_uv(jnp.array(U * values)[None], jnp.array(V.T)[None])
        squares = float(np.sum(factors.matrices() ** 2))
        found = losses.simplicity(
            {"w": factors}, jnp.array([1]), p=2.0, uses={"w": 1}, batch_size=1
        )
        close(found * 12, squares)
        close(squares, np.sum(values**2))

    @parameterized.parameters(0.5, 0.9, 1.0)
    def test_gradient_at_zero_is_finite(self, p):
        _, components, uses = arrays()
        zeros = jax.tree.map(jnp.zeros_like, components)
        with jax.debug_nans(True):
            gradient = jax.jit(
                jax.grad(lambda c: losses.simplicity(c, jnp.ones(3), p=p, uses=uses, batch_size=7))
            )(zeros)
        self.assertTrue(all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient)))


class ScaleFreeSimplicityTest(parameterized.TestCase):
    def _loss(self, components, p, counts=None):
        counts = jnp.ones(3) if counts is None else counts
        uses = {"linear1/kernel": 2, "hidden_0/kernel": 1}
        return losses.scale_free_simplicity(components, counts, p=p, uses=uses, batch_size=7)

    @parameterized.parameters(0.5, 0.9, 1.0, 2.0)
    def test_definition(self, p):
        _, components, uses = arrays()
        mask = np.random.default_rng(0).random((7, 3)) < 0.5
        total = 0.0
        for b in range(7):
            for c in np.flatnonzero(mask[b]):
                schatten = squares = 0.0
                for site, factors in components.items():
                    U, V = np.asarray(factors.U[c], np.float64), np.asarray(factors.V[c])
                    norms = np.sum(U**2, axis=0) * np.sum(V**2, axis=1)
                    schatten += uses[site] * np.sum(norms ** (p / 2))
                    squares += uses[site] * np.sum((U @ V) ** 2)
                total += schatten / squares ** (p / 2)
        close(self._loss(components, p, mask.sum(axis=0)), total / 7)

    def test_scale_does_not_matter(self):
        _, components, _ = arrays()
        halved = jax.tree.map(lambda leaf: leaf / 2, components)
        close(self._loss(halved, 0.9), self._loss(components, 0.9))
        gradient = jax.grad(lambda c: self._loss(c, 0.9))(components)
        for c in range(3):  # moving along itself changes nothing
            along = sum(
                jnp.sum(gradient[site].reads[c] * factors.reads[c])
                for site, factors in components.items()
            )
            np.testing.assert_allclose(along, 0.0, atol=1e-5)

    @parameterized.parameters((1, 0.9), (2, 0.9), (4, 1.0))
    def test_equal_singular_values(self, rank, p):
        factors = Factors.from_uv(3 * jnp.eye(5)[None, :, :rank], jnp.eye(5)[None, :rank])
        found = losses.scale_free_simplicity(
            {"w": factors}, jnp.array([1]), p=p, uses={"w": 1}, batch_size=1
        )
        close(found, rank ** (1 - p / 2))

    def test_gradient_at_zero_is_finite(self):
        _, components, _ = arrays()
        zeros = jax.tree.map(jnp.zeros_like, components)
        with jax.debug_nans(True):
            gradient = jax.jit(jax.grad(lambda c: self._loss(c, 0.9)))(zeros)
        self.assertTrue(all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient)))


class HiddenActivationsTest(parameterized.TestCase):
    @parameterized.parameters(
        (("first",), "identity", lambda y: y, "all"),
        (("first", "tied"), "relu", lambda y: np.maximum(y, 0), "all"),
        (("tied",), "relu", lambda y: np.maximum(y, 0), "all"),
        (("first", "tied"), "identity", lambda y: y, "first"),
    )
    def test_definition(self, chosen, activation, function, uses):
        widths = {("first", 0): 3, ("tied", 0): 2, ("tied", 1): 5}

        def records(seed):
            return {
                key: SiteRecord(jnp.zeros((7, 1)), networks.normal(seed + i, 7, width), PLACE)
                for i, (key, width) in enumerate(widths.items())
            }

        ours, target = records(0), records(50)
        keys = [key for key in widths if key[0] in chosen and (uses == "all" or key[1] == 0)]
        errors = [
            np.sum(
                (function(np.asarray(ours[k].y)) - function(np.asarray(target[k].y))) ** 2, axis=1
            )
            for k in keys
        ]
        expected = np.mean(np.sum(errors, axis=0)) / sum(widths[k] for k in keys)
        close(losses.hidden_activations(ours, target, chosen, activation, uses), expected)

    def test_sequences_are_averaged_over_places(self):
        y = networks.normal(0, 7, 4, 3)
        ours = {("w", 0): SiteRecord(y, y, PLACE)}
        zero = {("w", 0): SiteRecord(y, 0 * y, PLACE)}
        close(losses.hidden_activations(ours, zero, ["w"], "identity"), np.mean(np.asarray(y) ** 2))

    def test_gelu_is_the_exact_one(self):
        gelu = losses.activation_function("gelu")
        close(gelu(jnp.array(1.0)), 0.8413447)

    def test_unknown_activation(self):
        with self.assertRaisesRegex(
            ValueError, r"one of \['gelu', 'identity', 'relu'\], got 'tanh'"
        ):
            losses.activation_function("tanh")


class LpTest(parameterized.TestCase):
    @parameterized.parameters((0.9, 1.0), (0.5, 0.9))
    def test_definitions(self, p, schatten_p):
        _, components, uses = arrays()
        scores = np.abs(np.asarray(networks.normal(0, 7, 3), np.float64))
        weights = (scores**2 + 1e-16) ** (p / 2)
        close(lp_losses.lp_minimality(scores, p=p), np.mean(weights.sum(axis=1)))
        total = 0.0
        for site, factors in components.items():
            norms = np.sum(np.asarray(factors.U) ** 2, axis=1) * np.sum(factors.V**2, axis=2)
            for row in weights:
                inner = row[:, None] * norms + 1e-16
                total += uses[site] * np.sum(inner ** (schatten_p / 2))
        found = lp_losses.lp_simplicity(components, scores, p=p, schatten_p=schatten_p, uses=uses)
        close(found, total / (20 * 7), rtol=1e-4)

    def test_gradient_at_zero_is_finite(self):
        _, components, uses = arrays()

        def total(scores, components):
            simplicity = lp_losses.lp_simplicity(
                components, scores, p=0.9, schatten_p=0.9, uses=uses
            )
            return lp_losses.lp_minimality(scores, p=0.9) + simplicity

        with jax.debug_nans(True):
            for scale in (0.0, 1.0):
                at = jax.tree.map(lambda leaf, s=scale: s * leaf, components)
                gradient = jax.jit(jax.grad(total, (0, 1)))(jnp.zeros((7, 3)), at)
                self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)))


class NumberOfWeightsTest(absltest.TestCase):
    def test_tied_matrix_counts_twice_in_every_loss(self):
        """Splitting a tied site into two equal sites changes no loss."""
        target, components, _ = arrays()
        weights = {name: target.weights["linear1/kernel"] for name in ("a", "b")}
        both = {name: components["linear1/kernel"] for name in weights}
        tied = {"linear1/kernel": components["linear1/kernel"]}
        close(
            losses.faithfulness(tied, target.weights, {"linear1/kernel": 2}),
            losses.faithfulness(both, weights, {"a": 1, "b": 1}),
        )
        for name, pair in (("linear1/kernel", tied), ("a", both)):
            uses = {"linear1/kernel": 2} if name == "linear1/kernel" else {"a": 1, "b": 1}
            found = losses.simplicity(pair, jnp.ones(3), p=0.9, uses=uses, batch_size=1)
            close(
                found,
                losses.simplicity(
                    tied, jnp.ones(3), p=0.9, uses={"linear1/kernel": 2}, batch_size=1
                ),
            )
        x = networks.normal(0, 7, 4)
        records = jax.eval_shape(lambda x: sites.run(target, x, sites.as_is)[1], x)
        self.assertLen([key for key in records if key[0] == "linear1/kernel"], 2)


if __name__ == "__main__":
    absltest.main()
