"""Reading a metrics.jsonl that is whole, cut short, damaged or missing."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from apd_jax.runtime import metric_reader

ROWS = [{"step": step, "loss/total": [1.0 / step, None]} for step in (10, 20, 25)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


class ReadTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.path = root / "metrics.jsonl"

    def read(self, content: bytes | None = None):
        if content is not None:
            self.path.write_bytes(content)
        return metric_reader.read(self.path, steps=25, chunk_steps=10)

    def test_whole(self):
        self.assertEqual(self.read(TEXT.encode()), (ROWS, ""))

    def test_cut_anywhere(self):
        for length in range(len(TEXT) - 1):
            rows, gap = self.read(TEXT.encode()[:length])
            self.assertEqual(rows, ROWS[: len(rows)])
            self.assertEqual(
                gap, f"{self.path} lacks {3 - len(rows)} of 3 rows: its curves have gaps."
            )

    @parameterized.parameters(
        b"\0" * 4096,
        b"\xff\xfe\x80",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"step": "20"}',
        b"\n\n",
        b'{"step": 20, "loss/total": "low"}',
        b'{"step": 20, "loss/total": [[1]]}',
        b"[" * 99_999,
        b'{"step": 30}',
        b'{"loss/total": 3}',
        b'{"step": 20, "x": {}}',
    )
    def test_line_that_is_not_a_row(self, line):
        first, _, last = TEXT.encode().splitlines()
        rows, gap = self.read(b"\n".join([first, line, last, b""]))
        self.assertEqual(rows, [ROWS[0], ROWS[2]])
        self.assertRegex(gap, "lacks 1 of 3 rows")

    def test_missing(self):
        rows, gap = self.read()
        self.assertEqual(rows, [])
        self.assertEqual(
            gap, f"{self.path} cannot be read (No such file or directory): its curves are missing."
        )

    def test_not_a_file(self):
        self.path.mkdir()
        self.assertRegex(self.read()[1], "Is a directory")


if __name__ == "__main__":
    absltest.main()
