"""The launch scripts, with a pretended Python, pip and SLURM that write down what they are told."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))

# Answers for its VERSION as Python does, makes environments that hold a copy of itself, and runs
# RUN in the place of the package.
PYTHON = """#!/usr/bin/env bash
here=$(dirname "${BASH_SOURCE[0]}")
case "$*" in
*version_info*) [[ VERSION != 3.[0-9] && VERSION != 3.10 ]] ;;
--version) echo Python VERSION ;;
"-m venv --clear .venv") rm -rf .venv
  mkdir -p .venv/bin && cp "${BASH_SOURCE[0]}" .venv/bin/python && touch .venv/bin/pip ;;
"-m ensurepip"*) touch "$here/pip" ;;
"-m pip --version") [ -e "$here/pip" ] ;;
"-m pip"*) echo "pip in $PWD: $*" >> LOG; ! [ -e OFFLINE ] ;;
"-m compileall"*) echo "compiled in $PWD: $*" >> LOG; exit 1 ;;
*apd_jax.main*) echo "run in $PWD: $*" >> LOG
RUN
;;
esac
"""


class LaunchTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.top = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())).resolve()
        self.root = self.top / "a checkout"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (self.root / "requirements.txt").write_text("jax==1\n")
        self.elsewhere = self.top / "elsewhere"
        self.elsewhere.mkdir()
        self.log = self.top / "log"
        self.bin = self.top / "bin"
        self.bin.mkdir()
        self.python = self.make_python(self.bin / "python3")

    def make_python(self, path, version="3.11", run="exit 0"):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = PYTHON.replace("VERSION", version).replace("LOG", f"'{self.log}'")
        return self.make_program(
            path, text.replace("OFFLINE", f"'{self.top}/offline'").replace("RUN", run)
        )

    def make_environment(self, pip=True, **python):
        self.make_python(self.root / ".venv" / "bin" / "python", **python)
        if pip:
            (self.root / ".venv" / "bin" / "pip").touch()

    def make_program(self, path, text):
        path.write_text(text)
        path.chmod(0o755)
        return path

    def command(self, script, *arguments, **variables):
        return {
            "args": ["bash", script, *arguments],
            "cwd": self.elsewhere,
            "env": os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"} | variables,
            "text": True,
        }

    def launch(self, script, *arguments, status=0, **variables):
        script = self.root / "launch" / script if "/" not in script else script
        done = subprocess.run(
            **self.command(script, *arguments, **variables), capture_output=True, check=False
        )
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stderr

    def logged(self, kind):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.removeprefix(f"{kind} in ") for line in lines if line.startswith(kind)]


class SyntaxTest(parameterized.TestCase):
    @parameterized.parameters(
        *(f"launch/{name}" for name in SCRIPTS), "benchmarks/on_device.sh", ".ci/run"
    )
    def test_shellcheck(self, path):
        if shutil.which("shellcheck") is None:
            self.skipTest("shellcheck is not installed")
        done = subprocess.run(["shellcheck", ROOT / path], capture_output=True, text=True)
        self.assertEqual(done.stdout, "")


class SetupTest(LaunchTestCase):
    def test_fresh_then_again(self):
        self.launch("setup.sh")
        self.assertLen(self.logged("pip"), 2)
        self.launch("setup.sh")
        self.assertLen(self.logged("pip"), 2)
        (self.root / "requirements.txt").write_text("jax==2\n")
        self.launch("setup.sh")
        self.assertLen(self.logged("pip"), 4)

    @parameterized.parameters("3.8", "3.10")
    def test_old_python(self, version):
        self.make_python(self.bin / "python3", version=version)
        error = self.launch("setup.sh", status=1)
        self.assertRegex(
            error, f"^launch/setup.sh: Python 3.11 to 3.13 is needed, python3 is: Python {version}"
        )
        self.assertFalse((self.root / ".venv").exists())

    def test_python_that_is_not_there(self):
        error = self.launch("setup.sh", status=1, PYTHON="python3.99")
        self.assertRegex(error, "Python 3.11 to 3.13 is needed, python3.99 is: .*not found")
        self.assertLen(error.splitlines(), 1)

    @parameterized.named_parameters(
        ("of_an_old_python", lambda test: test.make_environment(version="3.9")),
        ("whose_python_is_gone", lambda test: test.dangle()),
        ("without_a_python", lambda test: (test.root / ".venv").mkdir()),
    )
    def test_environment(self, make):
        make(self)
        error = self.launch("setup.sh")
        self.assertIn(".venv has no Python 3.11 to 3.13; recreating it.", error)
        self.assertLen(self.logged("pip"), 2)
        self.assertEqual(self.launch("setup.sh"), "")

    def dangle(self):
        (self.root / ".venv" / "bin").mkdir(parents=True)
        (self.root / ".venv" / "bin" / "python").symlink_to(self.top / "gone")

    def test_environment_without_pip(self):
        self.make_environment(pip=False)
        (self.root / ".venv" / "of_the_user").touch()
        self.launch("setup.sh")
        self.assertLen(self.logged("pip"), 2)
        self.assertTrue((self.root / ".venv" / "of_the_user").exists())

    @parameterized.parameters(("1", 1), ("", 0))
    def test_compiles_where_python_does_not_keep_bytecode(self, value, times):
        """A library that does not compile is no error."""
        self.launch("setup.sh", PYTHONDONTWRITEBYTECODE=value)
        self.assertLen(self.logged("compiled"), times)
        self.assertTrue((self.root / ".venv" / "installed").exists())

    def test_goes_on_after_a_failed_installation(self):
        (self.top / "offline").touch()
        self.launch("setup.sh", status=1)
        (self.top / "offline").unlink()
        self.launch("setup.sh")
        self.assertLen(self.logged("pip"), 3)


class RunTest(LaunchTestCase):
    def setUp(self):
        super().setUp()
        self.expected = f"{self.elsewhere}: -P -m apd_jax.main --workdir=out"

    @parameterized.parameters({}, {"CDPATH": "/:/tmp"})
    def test_stays_where_it_is_called(self, **variables):
        self.launch("run.sh", "--workdir=out", **variables)
        self.assertEqual(self.logged("run"), [self.expected])

    def test_through_a_link(self):
        (self.bin / "apd").symlink_to(self.root / "launch" / "run.sh")
        self.launch(str(self.bin / "apd"), "--workdir=out")
        self.assertEqual(self.logged("run"), [self.expected])

    def test_runs_this_checkout(self):
        run = f'echo "run in $PYTHONPATH" >> {self.log}'
        self.make_python(self.bin / "python3", run=run)
        self.launch("run.sh", PYTHONPATH="/mine")
        self.assertEqual(self.logged("run")[-1], f"{self.root}:/mine")

    def test_status_is_the_runs(self):
        self.make_python(self.bin / "python3", run="exit 75")
        self.launch("run.sh", status=75)


class TpuTest(LaunchTestCase):
    @parameterized.parameters(0, 1)
    def test_again_until_it_is_done(self, last):
        again = self.top / "again"
        self.make_python(
            self.bin / "python3",
            run=f"if [ -e {again} ]; then exit {last}; fi; touch {again}; exit 75",
        )
        self.launch("tpu_vm.sh", "--workdir=out", status=last)
        self.assertEqual(
            self.logged("run"), 2 * [f"{self.elsewhere}: -P -m apd_jax.main --workdir=out"]
        )

    @parameterized.parameters(
        ((signal.SIGINT,), 75), ((signal.SIGTERM,), 75), ((signal.SIGINT, signal.SIGINT), 130)
    )
    def test_signals_stop_it(self, signals, status):
        got = self.top / "got"
        stop = (
            f"trap 'echo >> {got}; [ $(wc -l < {got}) = {len(signals)} ] && exit {status}' INT TERM"
        )
        wait = f"{stop}; touch {self.top}/ready; for _ in {{1..1500}}; do sleep 0.02; done"
        self.make_python(self.bin / "python3", run=wait)
        command = self.command(self.root / "launch" / "tpu_vm.sh")
        # A shell that started us in its background has us ignore Ctrl-C, and our children too.
        script = subprocess.Popen(
            **command,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.addCleanup(script.wait)
        self.addCleanup(self.kill_group, script.pid)
        self.wait_for(lambda: (self.top / "ready").exists())
        for count, number in enumerate(signals):
            # Ctrl-C goes to the whole group of the script.
            (os.killpg if number == signal.SIGINT else os.kill)(script.pid, number)
            self.wait_for(lambda n=count: got.exists() and len(got.read_text()) > n)
            time.sleep(0.5)  # a shell forgets a signal that comes while it handles the one before
        self.assertEqual(script.wait(timeout=10), status)
        self.assertLen(self.logged("run"), 1)
        self.assertLen(got.read_text(), len(signals))

    def kill_group(self, group):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    def wait_for(self, condition):
        end = time.monotonic() + 10
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)


class SlurmTest(LaunchTestCase):
    def setUp(self):
        super().setUp()
        self.make_environment()
        self.requeued = self.top / "requeued"
        self.make_program(self.bin / "scontrol", f'#!/bin/sh\necho "$@" > {self.requeued}\n')

    def submit(self, state="RUNNING", status=0, srun="exit {}", **variables):
        self.make_program(self.bin / "squeue", f"#!/bin/sh\necho {state}\n")
        self.make_program(self.bin / "srun", f"#!/bin/sh\n{srun.format(status)}\n")
        variables = {"SLURM_SUBMIT_DIR": str(self.root), "SLURM_JOB_ID": "7"} | variables
        return self.launch("slurm.sh", status=status, **variables)

    @parameterized.parameters(0, 1, 130)
    def test_other_ends(self, status):
        self.submit(status=status)
        self.assertFalse(self.requeued.exists())

    @parameterized.parameters(("RUNNING", True), ("CANCELLED", False), ("COMPLETING", False))
    def test_requeues_unless_cancelled(self, state, requeued):
        self.submit(state, status=75)
        self.assertEqual(self.requeued.exists(), requeued)

    def test_signal_to_the_script_itself(self):
        self.submit(status=75, srun="kill -TERM $PPID; exit {}")
        self.assertEqual(self.requeued.read_text(), "requeue 7\n")

    def test_log_of_the_job_before_stays(self):
        self.assertIn("\n#SBATCH --open-mode=append\n", (ROOT / "launch/slurm.sh").read_text())

    def test_submitted_from_elsewhere(self):
        error = self.submit(status=1, SLURM_SUBMIT_DIR=str(self.elsewhere))
        self.assertEqual(
            error,
            f"slurm.sh: no .venv in {self.elsewhere}: submit from the checkout, after bash "
            "launch/setup.sh.\n",
        )


class TpuPodTest(LaunchTestCase):
    """With a pretended gcloud, whose slice has the states of a list, one after another."""

    def pod(self, states, *arguments, ssh=(0,), status=0):
        queue, ends = self.top / "states", self.top / "ends"
        queue.write_text("".join(f"{state}\n" for state in states))
        ends.write_text("".join(f"{end}\n" for end in ssh))
        pop = 'first=$(head -n 1 "$1"); sed -i 1d "$1"; echo "$first"'
        self.make_program(self.bin / "pop", f"#!/usr/bin/env bash\n{pop}\n")
        self.make_program(
            self.bin / "gcloud",
            f"""#!/usr/bin/env bash
            echo "gcloud in $*" >> '{self.log}'
            case "$*" in
            *describe*) pop '{queue}' ;;
            *" ssh "*) exit "$(pop '{ends}')" ;;
            esac
            """,
        )
        commit = "git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm a"
        subprocess.run(commit, shell=True, check=True, cwd=self.root)
        self.launch("tpu_pod.sh", *arguments, status=status, POLL="0")
        verbs = ("create", "delete", "scp", "ssh")
        lines = [line for line in self.logged("gcloud") if " describe " not in line]
        return lines, [next(v for v in verbs if f" {v} " in line) for line in lines]

    def test_asks_waits_and_runs_on_all_hosts(self):
        arguments = ("apd", "us-central2-b", "v4-32", "--spot", "--", "--config=c", "--name=a b")
        lines, verbs = self.pod(["", "WAITING_FOR_RESOURCES", "ACTIVE"], *arguments)
        self.assertEqual(verbs, ["create", "scp", "ssh"])
        self.assertIn("create apd --zone=us-central2-b --node-id=apd", lines[0])
        self.assertIn("--accelerator-type=v4-32", lines[0])
        self.assertTrue(lines[0].endswith(" --spot"))
        self.assertIn("--worker=all", lines[2])
        self.assertTrue(lines[2].endswith("tpu_vm.sh --distributed --config=c --name=a\\ b"))

    def test_asks_again_after_a_preemption(self):
        states = ["ACTIVE", "SUSPENDING", "SUSPENDING", "SUSPENDED", "ACTIVE"]
        _, verbs = self.pod(states, "apd", "z", "v4-32", "--spot", "--", "--config=c", ssh=(255, 0))
        self.assertEqual(verbs, ["scp", "ssh", "delete", "create", "scp", "ssh"])

    def test_the_runs_own_failure_ends_it(self):
        _, verbs = self.pod(2 * ["ACTIVE"], "apd", "z", "v4-32", "--", "-x", ssh=(1,), status=1)
        self.assertEqual(verbs, ["scp", "ssh"])

    def test_delete(self):
        lines, _ = self.pod([], "apd", "z", "delete")
        self.assertLen(lines, 1)
        self.assertIn("queued-resources delete apd --zone=z", lines[0])

    @parameterized.parameters((("apd", "z"),), (("apd", "z", "v4-32", "--config=c"),))
    def test_usage(self, arguments):
        error = self.launch("tpu_pod.sh", *arguments, status=1)
        self.assertIn("tpu_pod.sh NAME ZONE ACCELERATOR", error)


class DockerTest(absltest.TestCase):
    def test_copies_files_that_are_there(self):
        lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
        copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ")]
        self.assertNotEmpty(copied)
        for name in sum(copied, []):
            self.assertTrue((ROOT / name).exists(), name)


if __name__ == "__main__":
    absltest.main()
