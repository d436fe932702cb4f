"""The code in docs/your-own-network.md runs, and prints what stands below it."""

import contextlib
import io
import pathlib
import re

import pytest
from absl.testing import absltest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.slow
class DocsTest(absltest.TestCase):
    def test_your_own_network(self):
        text = (DOCS / "your-own-network.md").read_text()
        blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.DOTALL)
        names, printed = {}, ""
        for kind, block in blocks:
            if kind == "text":
                self.assertEqual(printed, block)
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, "your_network.py", "exec"), names)
            printed = output.getvalue()


if __name__ == "__main__":
    absltest.main()
