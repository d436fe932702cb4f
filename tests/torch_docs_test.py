"""Code in docs/pytorch.md: it runs, and prints what it says."""

import contextlib
import io
import os
import pathlib
import re
import tempfile

import docs_pages_test
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

import apd_jax

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGE = DOCS / "pytorch.md"


class PytorchPageTest(absltest.TestCase):
    @pytest.mark.slow
    def test_code_runs(self):
        blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        printed = re.search(r"```text\n(decomposed:.*?)```", PAGE.read_text(), re.DOTALL)[1]
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        names, output = {}, io.StringIO()
        for block in blocks:
            with contextlib.redirect_stdout(output):
                exec(compile(block, "pytorch.py", "exec"), names)
        self.assertEqual(output.getvalue(), printed)


class DataPageTest(absltest.TestCase):
    @pytest.mark.slow
    def test_code_runs(self):
        pytest.importorskip("datasets")
        pytest.importorskip("grain")
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        names = {}
        for code in docs_pages_test.blocks(DOCS / "data.md"):
            exec(compile(code, "data.py", "exec"), names)
            if "found" in names:
                self.assertLen(names["found"].history, 1, code)
                self.assertEqual(names.pop("found").history[-1]["step"], 20)


class LanguageModelsPageTest(absltest.TestCase):
    @pytest.mark.slow
    def test_code_runs(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
        tokens = np.random.default_rng(0).integers(0, 20, (16, 4), dtype=np.int32)
        names = {
            "apd_jax": docs_pages_test.Shorter(),
            "torch": torch,
            "model": transformers.LlamaForCausalLM(config).eval(),
            "ids": torch.from_numpy(tokens).long(),
            "tokens": tokens,
            "held_out": tokens[:8],
            "target": apd_jax.Target(
                lambda params, x: params["in"][x] @ params["out"],
                {"in": jnp.ones((20, 4)), "out": jnp.eye(4, 20)},
                inputs=tokens,
            ),
        }
        for code in docs_pages_test.blocks(DOCS / "language-models.md"):
            code = re.sub(r"\b28\b", "1", code)  # the last of two layers
            exec(compile(code, "language_models.py", "exec"), names)
        self.assertEqual(list(names["upper"].sites)[0][:23], "model.layers.0.mlp.down")


if __name__ == "__main__":
    absltest.main()
