"""What the second edition wrote still loads and resumes (tests/data/second_edition).

Its files are of this network, `decompose(target, X, seed=3, **OPTIONS)`: a saved decomposition, and
a workdir that was stopped after step 20 of 40.
"""

import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

import apd_jax
from apd_jax.decomposition import directory

DATA = pathlib.Path(__file__).parent / "data" / "second_edition"
OPTIONS = {
    "num_components": 4,
    "topk": 1.5,
    "rank": 2,
    "steps": 40,
    "batch_size": 16,
    "refine": {"every": 10},
    "relative_losses": False,
}


def network(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def drawn():
    """The parameters and inputs of that time."""
    draw = np.random.default_rng(0)
    shapes = {"a": (5, 6), "b": (6, 3)}
    params = {name: draw.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    return params, draw.standard_normal((256, 5)).astype("f4")


class SecondEditionTest(absltest.TestCase):
    def test_a_saved_decomposition_loads(self):
        found = apd_jax.load(DATA / "saved_decomposition", network)
        expected = np.load(DATA / "saved_outputs.npz")
        np.testing.assert_allclose(found(expected["x"]), expected["out"], rtol=1e-5, atol=1e-6)
        scores = found.attributions(expected["x"])
        np.testing.assert_allclose(scores, expected["scores"], rtol=1e-5, atol=1e-6)

    @pytest.mark.slow
    @mock.patch.object(directory, "_write_report")  # whose compilation takes long
    def test_a_workdir_resumes(self, _):
        workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "workdir"
        shutil.copytree(DATA / "workdir", workdir)
        params, x = drawn()
        found = apd_jax.decompose(
            apd_jax.Target(network, params),
            x,
            seed=3,
            workdir=workdir,
            chunk_steps=5,
            checkpoint_every=10,
            **OPTIONS,
        )
        self.assertEqual([row["step"] for row in found.history], list(range(5, 45, 5)))
        expected = np.load(DATA / "finished.npz")
        for site, factors in found.components.items():
            for name in "UV":
                value = getattr(factors, name)
                np.testing.assert_allclose(value, expected[site + name], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
