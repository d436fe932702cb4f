"""The search for k: which is tried next, what a curve says, and decompositions that ask for it."""

import json
import os
import pathlib
import signal
import tempfile
from unittest import mock

import handmade
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.decomposition import auto_topk
from apd_jax.decomposition.result import Decomposition
from apd_jax.errors import UserError
from apd_jax.objective.objective import Objective
from apd_jax.report import evidence_section
from apd_jax.runtime.workdir import Workdir
from apd_jax.training.config import Settings

FEATURES = 6
TWO = SparseFeatures(FEATURES, 0.1, (1.0, 1.001), "exactly_n", 2)


def identity(features=FEATURES):
    example = jax.ShapeDtypeStruct((2, features), jnp.float32)
    return apd_jax.Target(lambda p, x: x @ p["w"], {"w": jnp.eye(features)}, inputs=example)


def pilot(topk, error, enough):
    return auto_topk.Pilot(topk=topk, error=error, enough=enough)


def decompose(features=2, **changes):
    """Of the identity on as many features, one of which is active: twice as many components."""
    inputs = SparseFeatures(features, 0.1, (1.0, 2.0), "exactly_n", 1)
    options = {"topk": "auto", "rank": 1, "steps": 400, "chunk_steps": 100, "batch_size": 64}
    options |= {"num_components": 2 * features, "refine": {"every": 0}}
    return apd_jax.decompose(identity(features), inputs, **options | changes)


class FollowingTest(parameterized.TestCase):
    @parameterized.parameters(
        ((), 0.25),
        # All places are needed: twice as many, until that helps no more.
        (((0.25, 0.9, 0.24),), 0.5),
        (((0.25, 0.9, 0.24), (0.5, 0.4, 0.49)), 1.0),
        (((0.25, 0.9, 0.24), (0.5, 0.04, 0.49), (1.0, 0.015, 0.9)), None),
        # Of .5 many do little: so few are tried, unless as few were too few before.
        (((0.5, 0.001, 0.2),), 0.2),
        (((0.25, 0.04, 0.24), (0.5, 0.001, 0.27)), None),
        (((0.5, 0.001, 0.2), (0.2, 0.029, 0.19)), None),
        (((0.5, 0.001, 0.2), (0.2, 0.3, 0.19)), None),
        # Of many equal mechanisms, two places for one take away little.
        (((0.25, 0.985, 0.25), (0.5, 0.965, 0.5)), 1.0),
        (((0.25, 0.985, 0.01), (0.5, 0.99, 0.01)), None),
        # There are no more to try.
        (((2.0, 0.9, 2.0), (4.0, 0.8, 4.0)), None),
        (((2.0, 0.9, 2.0), (3.0, 0.8, 3.0)), 4.0),
    )
    def test_next(self, pilots, expected):
        self.assertEqual(auto_topk.following([pilot(*p) for p in pilots], 0.25, 4.0), expected)

    def test_found(self):
        pilots = [pilot(0.15, 0.05, 0.14), pilot(0.30, 0.009, 0.22), pilot(0.6, 0.0001, 0.3)]
        self.assertEqual(auto_topk.found(pilots), 0.22)

    def test_nothing_found(self):
        with self.assertRaisesRegex(UserError, "0.98 with k = 0.25, 0.9 with k = 0.5.+as a number"):
            auto_topk.found([pilot(0.25, 0.98, 0.25), pilot(0.5, 0.9, 0.5)])


class FindTest(absltest.TestCase):
    def test_too_few_examples_are_refused_before_any_training(self):
        settings = Settings(Objective(), num_components=5, batch_size=100)
        with self.assertRaisesRegex(UserError, "2 examples are too few .* at least 4, or topk as"):
            auto_topk.find(auto_topk.Search(), settings, None, np.zeros((2, 3)), None)


class LookTest(absltest.TestCase):
    def test_as_many_as_are_active(self):
        """Two of six inputs of equal size: a share of 0.5 % of the pairs may go."""
        pieces = np.zeros((FEATURES + 3, FEATURES, FEATURES))
        pieces[np.arange(FEATURES), np.arange(FEATURES), np.arange(FEATURES)] = 1
        settings = Settings(Objective(topk=5.0), num_components=FEATURES + 3, batch_size=100)
        known = Decomposition(identity(), handmade.full_rank({"w": pieces}), settings)
        seen = auto_topk.look(known, TWO(jax.random.key(0), 1000))
        self.assertEqual(seen["topk"], 5.0)
        self.assertLess(seen["error"], 1e-6)
        self.assertBetween(seen["enough"], 1.98, 2.04)


class DecomposeTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_finds_one_of_one(self):
        found = decompose(3, steps=1200)
        self.assertBetween(found.settings.objective.topk, 0.7, 1.5)  # its trainings are short
        pieces = np.asarray(found.components["w"].matrices())
        holders = np.abs(pieces[:, np.arange(3), np.arange(3)]).argmax(axis=0)
        self.assertLen(set(holders.tolist()), 3)

    @pytest.mark.slow
    @mock.patch.object(auto_topk, "_LARGE", 1.0)  # of trainings so short little is asked
    def test_stopped_and_called_again(self):
        with tempfile.TemporaryDirectory() as folder:
            workdir, look = pathlib.Path(folder) / "run", auto_topk.look

            def interrupted(decomposition, x):
                os.kill(os.getpid(), signal.SIGINT)
                return look(decomposition, x)

            patched = mock.patch.object(auto_topk, "look", side_effect=interrupted)
            with patched, self.assertLogs(level="WARNING") as logs:
                short = decompose(workdir=workdir)
            self.assertIn("Stopped during the search for k", logs.output[-1])
            self.assertEqual(short.settings.steps, 100)
            self.assertEqual(short.settings.objective.topk, 0.25)
            self.assertFalse((workdir / "components").exists())
            kept = json.loads((workdir / auto_topk.FILE).read_text())
            self.assertEqual([p["topk"] for p in kept["pilots"]], [0.25])
            # The report's evidence would take most of the time.
            left_out = mock.patch.object(evidence_section, "measure", side_effect=UserError("-"))
            with mock.patch.object(auto_topk, "look", side_effect=look) as looks, left_out:
                found = decompose(workdir=workdir)
            self.assertEqual(looks.call_count, len(found.pilots) - 1)
            self.assertEqual(found.pilots[0], kept["pilots"][0])
            self.assertEqual(found.settings.steps, 400)
            loaded = apd_jax.load(workdir / "components", identity(2))
            self.assertEqual(list(loaded.pilots), list(found.pilots))
            page = (workdir / "report.html").read_text()
            self.assertIn("found by short runs with 0.25, ", page)
            with self.assertRaisesRegex(UserError, "topk"):
                decompose(workdir=workdir, topk=1.0)

    @parameterized.parameters("[{]", '{"pilots": [{"x": 1}], "topk": 1}', None)
    def test_a_search_that_is_lost(self, text):
        """Steps that were made with the k that was found don't go on with another."""
        with tempfile.TemporaryDirectory() as folder, Workdir(folder) as workdir:
            workdir.checkpoints.mkdir()
            if text is not None:
                (workdir.path / auto_topk.FILE).write_text(text)
            with self.assertRaisesRegex(UserError, "pilots.json.+put it back, or delete"):
                auto_topk.read(workdir)

    @parameterized.parameters(
        ({"selection": "exact"}, "batch top-k .+ got selection='exact'.+give a number"),
        ({"distil": True}, "distil=True"),
        ({"num_components": 1, "batch_size": 1}, "topk"),
        ({"schedules": {"topk": "0:1 1:0.5"}}, "schedules.topk='0:1 1:0.5'"),
        ({"topk": "automatic"}, "topk"),
        ({"num_components": 2.5}, "num_components"),
    )
    @pytest.mark.slow
    def test_what_it_is_not_for(self, changes, message):
        with self.assertRaisesRegex(UserError, message):
            decompose(**changes)

    def test_refuses_an_iterator(self):
        batches = iter([np.eye(FEATURES, dtype=np.float32)] * 3)
        with self.assertRaisesRegex(UserError, "iterator.+a list or a data loader"):
            apd_jax.decompose(identity(), batches, num_components=4, topk="auto")


if __name__ == "__main__":
    absltest.main()
