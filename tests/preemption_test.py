"""Signals: the first is noted, the second Ctrl-C stops at once, handlers come back."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from absl.testing import absltest, parameterized

from apd_jax.runtime import preemption

LOOP = """
import sys, time
from apd_jax.runtime import preemption, processes
with preemption.catch_signals() as flag:
    print("ready", flush=True)
    while not flag.requested:
        time.sleep(0.01)
sys.exit(processes.EXIT_RESUME)
"""


class PreemptionTest(parameterized.TestCase):
    @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
    def test_first_signal_is_noted(self, number):
        before = signal.getsignal(number)
        with preemption.catch_signals() as flag:
            self.assertFalse(flag.requested)
            os.kill(os.getpid(), number)
            self.assertTrue(flag.requested)
        self.assertIs(signal.getsignal(number), before)

    @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
    def test_then_ctrl_c_stops_at_once(self, first):
        before = signal.getsignal(signal.SIGINT)
        with self.assertRaises(KeyboardInterrupt), preemption.catch_signals():
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
        self.assertIs(signal.getsignal(signal.SIGINT), before)

    def test_second_sigterm_changes_nothing(self):
        with preemption.catch_signals() as flag:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            self.assertTrue(flag.requested)

    def test_handlers_come_back_after_an_error(self):
        before = signal.getsignal(signal.SIGTERM)
        with self.assertRaises(ZeroDivisionError), preemption.catch_signals():
            _ = 1 / 0
        self.assertIs(signal.getsignal(signal.SIGTERM), before)

    def test_other_threads_may_use_it(self):
        flags = []

        def run():
            with preemption.catch_signals() as flag:
                flags.append(flag.requested)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self.assertEqual(flags, [False])

    @pytest.mark.slow
    def test_exit_status_of_a_process(self):
        command = [sys.executable, "-c", LOOP]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            self.assertEqual(process.stdout.readline(), "ready\n")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 75)
        self.assertIn("SIGTERM: stopping after this chunk", errors)


if __name__ == "__main__":
    absltest.main()
