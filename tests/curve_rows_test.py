"""Reading a metrics.jsonl that is whole, cut short, damaged or missing."""

import json
import pathlib
import tempfile
import types

from absl.testing import absltest, parameterized

from apd_jax.run import publish
from apd_jax.runtime import metric_reader
from apd_jax.training.config import Settings
from apd_jax.training.refine.rules import Rules

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
        b'{"step": 0}',
        b'{"step": true}',
        b'{"loss/total": 3}',
        b'{"step": 20, "x": {}}',
    )
    def test_line_that_is_not_a_row(self, line):
        first, _, last = TEXT.encode().splitlines()
        rows, gap = self.read(b"\n".join([first, line, last, b""]))
        self.assertEqual(rows, [ROWS[0], ROWS[2]])
        self.assertRegex(gap, "lacks 1 of 3 rows")

    @parameterized.parameters(
        (4, 6, [4, 6, 10, 12, 16, 18, 20], 0),
        (4, 6, [4, 10, 12, 18, 20], 2),
        (4, 6, [], 7),
        (4, None, [4, 8, 12, 16, 20], 0),
        (50, 6, [6, 12, 18, 20], 0),
        (4, 40, [4, 7, 11, 15, 19, 20], 0),  # after data that failed at step 7
    )
    def test_chunks_of_other_lengths(self, chunk_steps, every, steps, missing):
        self.path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
        rows, gap = metric_reader.read(self.path, steps=20, chunk_steps=chunk_steps, every=every)
        self.assertEqual([row["step"] for row in rows], steps)
        if missing:
            self.assertRegex(gap, f"lacks {missing} of {missing + len(steps)} rows")
        else:
            self.assertEqual(gap, "")

    @parameterized.parameters((6, [4, 6, 10, 12, 16, 18, 20]), (0, [4, 8, 12, 16, 20]))
    def test_rows_of_a_study_with_rounds(self, every, steps):
        self.path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
        settings = Settings(num_components=3, steps=20, refine=Rules(every=every, ramp=1))
        plan = types.SimpleNamespace(
            config=types.SimpleNamespace(chunk_steps=4), settings=settings, training=None
        )
        rows, _, gaps = publish._read_metrics(types.SimpleNamespace(metrics=self.path), plan)
        self.assertEqual(([row["step"] for row in rows], gaps), (steps, []))

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
