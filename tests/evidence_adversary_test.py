"""The adversary finds the worst masks.

Letters: B examples, C components.
"""

import itertools

import evidence_cases as cases
import jax
import jax.numpy as jnp
import networks
import numpy as np
from absl.testing import absltest

import apd_jax
from apd_jax.evaluation.evidence import Adversary, adversary, distance
from apd_jax.evaluation.evidence.parts import Parts
from apd_jax.evaluation.evidence.rows import Examples
from apd_jax.objective.partial import scaled

COUNT = 12


def toy():
    """Twelve components, a few examples, and masks with two of them active."""
    target = networks.mlp(hidden=8)
    components = networks.components(target, COUNT, 1)
    components = {s: apd_jax.Factors(f.reads * 0.5, f.writes) for s, f in components.items()}
    x = networks.normal(5, 6, 3)
    found = cases.decomposition(target, components, x, topk=2.0)
    block = Examples(x, jnp.ones(6), outputs=target(x))
    return target, Parts(components), block, jnp.asarray(found.mask(x))


class AdversaryTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.target, cls.parts, cls.block, cls.mask = toy()
        switches = np.array(list(itertools.product([0, 1], repeat=COUNT)), np.float32)

        def errors(r):
            mask = scaled(cls.mask, jnp.broadcast_to(r, cls.mask.shape))
            return distance.of_mask("mse", cls.target, cls.parts, cls.block, mask).error

        # [2^12, B]: every way to switch components on and off.
        cls.every = np.asarray(jax.jit(lambda s: jax.lax.map(errors, s))(jnp.asarray(switches)))

    def search(self, steps=40, starts=4):
        arguments = ("mse", self.target, self.parts)
        return Adversary((steps,), starts=starts), *arguments

    def test_every_row_is_within_5_percent_of_the_exhaustive_worst_case(self):
        found = adversary.worst_per_row(
            *self.search(), self.block, self.mask, jax.random.key(0), lambda _: None
        )
        worst = self.every.max(axis=0)
        self.assertTrue(np.all(np.asarray(found[40].error) >= 0.95 * worst))

    def test_the_shared_mask_is_within_5_percent_too(self):
        found = adversary.worst_shared(
            *self.search()[:-1],
            self.parts.terms,
            lambda: [(self.block, self.mask)],
            jax.random.key(0),
            lambda _: None,
        )
        worst = self.every.sum(axis=1).max()
        self.assertGreaterEqual(found[40][0].error.sum(), 0.95 * worst)

    def test_more_steps_and_starts_find_no_less(self):
        key = jax.random.key(1)
        values = []
        for starts in (1, 3):
            search = (Adversary((2, 5, 20), starts=starts), *self.search()[1:])
            found = adversary.worst_per_row(*search, self.block, self.mask, key, lambda _: None)
            values.append(np.array([found[n].error for n in (2, 5, 20)]))
        for value in values:
            self.assertTrue(np.all(np.diff(value, axis=0) >= -1e-5))
        self.assertTrue(np.all(values[1] >= values[0] * (1 - 1e-5)))

    def test_active_components_stay_whole(self):
        every = jnp.ones_like(self.mask)
        found = adversary.worst_per_row(
            *self.search(3, 1), self.block, every, jax.random.key(0), lambda _: None
        )
        whole = distance.of_mask(
            "mse", self.target, self.parts, self.block, every.astype(jnp.float32)
        )
        np.testing.assert_allclose(found[3].error, whole.error, rtol=1e-5)

    def test_passes_are_counted(self):
        counted = []
        adversary.worst_per_row(
            *self.search(4, 2), self.block, self.mask, jax.random.key(0), counted.append
        )
        self.assertEqual(sum(counted), 2 * 4)


if __name__ == "__main__":
    absltest.main()
