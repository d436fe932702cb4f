"""Attributions that are NaN in training: counted in the metrics, and warned of once."""

import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax

X = np.array(networks.normal(0, 400, 3))
X[::8] = [1, 1, -1]  # where the root has no finite derivative


def root(params, x):
    return jnp.sqrt(jnp.abs(x @ params["w"] - 1))


class NonfiniteScoresTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("all", {}, 50), ("accumulated", {"accumulate": 2}, 50), ("valid", {"valid": None}, 25)
    )
    @pytest.mark.slow
    def test_of_an_epoch(self, options, rows):
        if "valid" in options:  # every other one of the rows without derivatives
            options = {"valid": lambda batch: batch["number"] % 16 > 0}
        data = {"x": X, "number": np.arange(400)}
        target = apd_jax.Target(lambda p, batch: root(p, batch["x"]), {"w": np.ones((3, 2), "f4")})
        with self.assertLogs("absl", "WARNING") as logs:
            found = apd_jax.decompose(
                target,
                data,
                num_components=3,
                topk=1.0,
                rank=1,
                steps=20,
                batch_size=40,
                chunk_steps=5,
                refine={"every": 0},
                relative_losses=False,
                coefficients={"simplicity": 1.0},
                **options,
            )
        counts = [row["count/nonfinite_scores"] for row in found.history]
        self.assertLen(counts, 4)
        self.assertEqual(sum(counts), 2 * rows * 3)  # two epochs, three components
        self.assertRegex(logs.output[0], f"{counts[0]} attributions up to step 5 are NaN")
        self.assertLen(logs.output, 1)


if __name__ == "__main__":
    absltest.main()
