"""Progress: a bar on a terminal, few lines elsewhere, nothing from other processes."""

import io
import re
import sys
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from apd_jax.runtime import progress
from apd_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.now = 0.0
        clock = mock.patch.object(progress.time, "monotonic", lambda: self.now)
        self.enterContext(clock)

    def lines(self, updates, total=1000, **kwargs):
        """Log lines of updates (time, done), with the file and level stripped."""
        with (
            mock.patch.object(sys, "stderr", io.StringIO()),
            mock.patch.object(progress, "_has_bars", lambda: False),
            self.assertLogs("absl", "INFO") as logs,
            Progress(total, "decompose", **kwargs) as bar,
        ):
            for self.now, done in updates:
                bar.update(done, **{"loss/total": np.array([0.1, 0.3]), "lr": 1e-3})
        return [record.getMessage() for record in logs.records]

    def test_first_and_last_line(self):
        lines = self.lines([(1, 100), (2, 500), (3, 999), (4, 1000)])
        self.assertEqual(
            lines,
            [
                "decompose: 100/1000 steps, 100 steps/s, 00:09 left, loss/total 0.2, lr 0.001",
                "decompose: 1000/1000 steps, 250 steps/s, loss/total 0.2, lr 0.001",
            ],
        )

    def test_a_line_every_ten_seconds(self):
        lines = self.lines([(t, t) for t in range(1, 36)])
        self.assertEqual(
            [int(re.findall(r"(\d+)/", line)[0]) for line in lines], [1, 11, 21, 31, 35]
        )

    def test_speed_counts_from_where_it_resumed(self):
        lines = self.lines([(10, 950)], initial=900, unit="chunk")
        self.assertIn("950/1000 chunks, 5 chunks/s, 00:10 left", lines[0])

    def test_an_opening_sentence(self):
        first, *rest = self.lines([(1, 1000)], opening="It takes 1000.")
        self.assertEqual(first, "It takes 1000.")
        self.assertLen(rest, 1)

    def test_update_that_ends_the_loop_is_logged_once(self):
        self.assertLen(self.lines([(1, 1000)]), 1)

    def test_bar_on_a_terminal(self):
        terminal = Terminal()
        with (
            mock.patch.object(sys, "stderr", terminal),
            self.assertNoLogs("absl", "INFO"),
            Progress(40, "train target", initial=10, opening="It takes 40.") as bar,
        ):
            for done in (20, 30, 40):
                bar.update(done, loss=0.25)
        self.assertIn("It takes 40.\n", terminal.getvalue())
        last = terminal.getvalue().split("\r")[-1]
        self.assertRegex(last, r"train target: 100%.*40/40 .*loss=0.25")

    def test_other_processes_are_silent(self):
        terminal = Terminal()
        with (
            mock.patch.object(jax, "process_index", return_value=1),
            mock.patch.object(sys, "stderr", terminal),
            self.assertNoLogs("absl", "INFO"),
            Progress(10, "evaluate", opening="It takes 10.") as bar,
        ):
            bar.update(10)
        self.assertEqual(terminal.getvalue(), "")


if __name__ == "__main__":
    absltest.main()
