"""The network that `benchmarks.spd_driver` builds is that of `benchmarks.transformer`."""

import jax
import numpy as np
import pytest
from absl.testing import absltest

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from benchmarks import spd_driver, transformer  # noqa: E402

SIZES = transformer.Sizes(layers=2, positions=5, batch=3, width=8, heads=2, vocabulary=11)


class DecoderTest(absltest.TestCase):
    def test_has_the_same_logits(self):
        params = transformer.init_params(jax.random.key(0), SIZES)
        decoder = spd_driver.Decoder(SIZES._asdict())
        matrices = {"unembed": params["unembed"]}
        for layer, block in enumerate(params["blocks"]):
            matrices |= {f"blocks.{layer}.{name}": matrix for name, matrix in block.items()}
        self.assertCountEqual(decoder.sites, matrices)
        with torch.no_grad():
            for name, matrix in matrices.items():
                decoder.get_submodule(name).weight.copy_(torch.tensor(np.array(matrix).T))
            for name in ("tokens", "positions"):
                decoder.get_submodule(name).weight.copy_(torch.tensor(np.array(params[name])))
            tokens = np.random.default_rng(0).integers(11, size=(3, 5))
            actual = decoder(torch.tensor(tokens)).numpy()
        expected = transformer.apply(params, tokens, heads=SIZES.heads)
        np.testing.assert_allclose(actual, expected, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
