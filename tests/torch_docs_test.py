"""Code in docs/pytorch.md: it runs, and prints what it says."""

import contextlib
import io
import os
import pathlib
import re
import tempfile

import pytest
from absl.testing import absltest

pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "pytorch.md"


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


if __name__ == "__main__":
    absltest.main()
