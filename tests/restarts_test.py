"""Initialisations side by side: the one of least loss stays, as it is alone."""

import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest

import apd_jax
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.run import experiment, publish
from apd_jax.runtime import loop
from apd_jax.training import restarts
from apd_jax.training.config import Settings
from apd_jax.training.trainer import Trainer

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "configs"))
import tms  # noqa: E402


def inputs(key, batch_size):
    return jax.random.normal(key, (batch_size, 4))


class BestTest(absltest.TestCase):
    @pytest.mark.slow
    def test_least_loss_on_the_same_inputs(self):
        objective = Objective(Coefficients(1.0, 1.0, 0.1), topk=1.0)
        settings = Settings(objective=objective, num_components=3, steps=1, batch_size=8, rank=2)
        seeds = jnp.array([4, 5], jnp.uint32)
        targets = loop.stack([networks.tms()] * 2)
        trainer = Trainer(settings, targets, inputs, seeds, restarts=3)
        spread, states = trainer.context, trainer.init_state()
        np.testing.assert_array_equal(trainer.seeds, [4, 5, 6, 7, 8, 9])
        places, losses = restarts.best(settings, spread, states, seeds, inputs)
        self.assertEqual(losses.shape, (2, 3))
        for decomposition, place in enumerate(places):
            least = int(jnp.argmin(losses[decomposition]))
            self.assertEqual(int(place), 2 * least + decomposition)
        # Initialisations are told apart by their components alone: inputs are of the decomposition.
        same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 6), states)
        _, losses = restarts.best(settings, spread, same, seeds, inputs)
        np.testing.assert_allclose(losses, jnp.broadcast_to(losses[:, :1], (2, 3)), rtol=1e-6)
        self.assertNotAlmostEqual(float(losses[0, 0]), float(losses[1, 0]))

    def test_a_loss_that_is_not_finite_is_not_the_least(self):
        settings = Settings(
            objective=Objective(topk=1.0), num_components=3, steps=1, batch_size=8, rank=2
        )
        targets, seeds = loop.stack([networks.tms()]), jnp.array([4], jnp.uint32)
        trainer = Trainer(settings, targets, inputs, seeds, restarts=4)
        states = trainer.init_state()
        broken = jnp.array([jnp.nan, 3.0, jnp.inf, 2.0])
        components = jax.tree.map(
            lambda leaf: broken.reshape(-1, *(1,) * (leaf.ndim - 1)) * jnp.ones_like(leaf),
            states.components,
        )
        states = states._replace(components=components)
        first = lambda *given: jax.tree.leaves(given[2])[0].ravel()[0]  # noqa: E731
        with mock.patch.object(restarts, "mean_loss", first):
            places, losses = restarts.best(settings, trainer.context, states, seeds, inputs)
        self.assertEqual(places.tolist(), [3])
        self.assertEqual(losses.tolist(), [[np.inf, 3.0, np.inf, 2.0]])

    def test_the_others_are_those_that_were_not_chosen(self):
        objective = Objective(Coefficients(1.0, 1.0, 0.1), topk=1.0)
        settings = Settings(objective=objective, num_components=3, steps=1, batch_size=8, rank=2)
        targets = loop.stack([networks.tms()] * 2)
        seeds = jnp.array([4, 5], jnp.uint32)
        trainer = Trainer(settings, targets, inputs, seeds, restarts=3)
        states = trainer.init_state()
        for number, result in enumerate(trainer.results(states)):
            self.assertLen(result.others, 2)
            best = int(np.argmin(result.losses))
            others = [j for j in range(3) if j != best]
            for j, components in zip(others, result.others, strict=True):
                expected = loop.pick(states.components, 2 * j + number)
                jax.tree.map(np.testing.assert_array_equal, components, expected)
            found = apd_jax.Decomposition(
                networks.tms(),
                result.components,
                settings,
                losses=result.losses,
                others=result.others,
            )
            agreement = found.agreement()
            match = apd_jax.compare(result.components, result.others[0])
            self.assertAlmostEqual(agreement.mmcs[best, others[0]], match.mmcs_first)
            self.assertEqual(agreement.matched[others[0], best], match.matched_share)
        alone = apd_jax.Decomposition(networks.tms(), result.components, settings)
        self.assertIsNone(alone.agreement())

    def test_without_choice_nothing_is_computed(self):
        seeds = jnp.array([4, 5], jnp.uint32)
        targets = loop.stack([networks.tms()] * 2)
        settings = Settings(
            objective=Objective(topk=1.0), num_components=3, steps=1, batch_size=8, rank=2
        )
        states = Trainer(settings, targets, inputs, seeds).init_state()
        places, losses = restarts.best(settings, targets, states, seeds, sample_batch=None)
        self.assertEqual(places.tolist(), [0, 1])
        self.assertEqual(losses.shape, (2, 0))


@pytest.mark.slow
class RunTest(absltest.TestCase):
    def test_the_best_is_what_its_seed_gives_alone(self):
        options = {"num_components": 3, "topk": 1.0, "steps": 20, "batch_size": 32, "rank": 2}
        found = apd_jax.decompose(networks.tms(), inputs, restarts=3, **options)
        self.assertLen(found.losses, 3)
        seed = int(np.argmin(found.losses))
        alone = apd_jax.decompose(networks.tms(), inputs, seed=seed, **options)
        self.assertEmpty(alone.losses)
        self.assertEqual(found.history[-1]["step"], 20)
        self.assertAlmostEqual(found.history[-1]["loss/total"], alone.history[-1]["loss/total"], 5)
        for site, factors in found.components.items():
            np.testing.assert_allclose(
                factors.matrices(), alone.components[site].matrices(), atol=1e-4
            )

    def test_results_keep_the_losses_of_all(self):
        config = tms.get_config()
        config.update(seeds=2, restarts=3, steps=20, batch_size=32, chunk_steps=10, rank=2)
        config.update(evaluation_samples=256, evidence_samples=0)
        config.target.update(steps=20, batch_size=32)
        undrawn = mock.patch.object(publish, "_draw", return_value=[])
        with tempfile.TemporaryDirectory() as directory, undrawn:
            experiment.run(config, pathlib.Path(directory) / "run", command="me")
            results = json.loads((pathlib.Path(directory) / "run" / "results.json").read_text())
        losses = np.array(results["restart_losses"])
        self.assertEqual(losses.shape, (2, 3))
        self.assertGreater(losses.std(axis=1).min(), 0)
        for row in results["seeds"]:
            self.assertBetween(row["restart_matched"], 0, 1)
            self.assertBetween(row["restart_mmcs"], 0, 1)


if __name__ == "__main__":
    absltest.main()
