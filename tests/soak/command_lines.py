"""Random command lines: each takes 3 steps, or ends in one line that names a field.

python -m pytest -n 0 -s tests/soak/command_lines.py
"""

import contextlib
import pathlib
import re
import sys
import tempfile
import time
from unittest import mock

import fresh_flags
import hypothesis
from absl.testing import absltest
from hypothesis import strategies as st

from apd_jax import config_fields, main, studies
from apd_jax.run import experiment
from apd_jax.run.config import Config
from apd_jax.runtime import loop
from apd_jax.runtime.checkpoint import Checkpointer

ROOT = pathlib.Path(__file__).parent.parent.parent
COMMANDS, SECONDS = 300, 20.0  # of this process: others may share the machine
CONFIGS = {"tms": ("5-2", "5-2-id"), "resid_mlp": ("1", "2")}
# What keeps a command small; random settings come after it and may undo it.
SMALL = {
    "tms": ["batch_size=8", "topk=1.0", "target.num_features=5"],
    "resid_mlp": ["batch_size=8", "num_components=7", "target.num_features=5", "target.d_resid=6"],
}
STEPS = ["steps=3", "chunk_steps=3", "target.steps=3", "target.batch_size=8"]
FIXED = {"name", "variant", "steps", "target.steps", "chunk_steps"}

WORDS = ["none", "", "x", "True", "1e400", "--", "'", "é", "(", "[1", "{}", "0x10", "1,2", "\\"]
COUNTS = ["1", "2", "3", "5", "7", "0", "-1", "2.5", "1e3", "4294967295", "99999999999", str(2**70)]
NUMBERS = ["0.5", "1", "2.0", "1e-3", "0.1", "0", "-1", "-0.5", "inf", "nan", "1e300", "1e-300"]
TUPLES = ["()", "(1,)", "(3,4)", "((0,1),)", "((0,1),(2,3))", "((0,1),(1,2))", "(1.0,)*5", "(0,)"]


def values(field) -> st.SearchStrategy[str]:
    """What a user may write behind a field, right or wrong."""
    choices = config_fields.choices(field)
    usual = {int: COUNTS, float: NUMBERS, bool: ["true", "false", "1", "maybe"]}
    kind = next(
        (k for k in usual if k == field.type or k in getattr(field.type, "__args__", ())), None
    )
    if choices:
        right = [*map(str, choices), "nope"]
    elif kind is not None and "tuple" not in str(field.type):
        right = usual[kind]
    else:
        right = TUPLES if "tuple" in str(field.type) else ["rms", "relu", "gradient", "identity"]
    return st.one_of(*3 * [st.sampled_from(right)], st.sampled_from(WORDS))


@st.composite
def commands(draw) -> tuple[str, str, list[tuple[str, str]]]:
    """A study, a variant and up to four settings."""
    study = draw(st.sampled_from(sorted(CONFIGS)))
    known = [
        (name, field)
        for name, field, _ in config_fields.leaves(Config(target=studies.find(study).task))
        if name not in FIXED
    ]
    chosen = draw(
        st.lists(st.sampled_from(known), min_size=1, max_size=4, unique_by=lambda f: f[0])
    )
    settings = [(name, draw(values(field))) for name, field in chosen]
    return study, draw(st.sampled_from(CONFIGS[study])), settings


def run(workdir: pathlib.Path, study: str, variant: str, settings) -> tuple[int, list[str]]:
    """Exit status and error lines of a command, which stops where evaluation would begin."""
    lines = [*STEPS, *SMALL[study], *(f"{name}={value}" for name, value in settings)]
    arguments = [f"--config={ROOT}/configs/{study}.py:{variant}", f"--workdir={workdir}"]
    stop = mock.patch.object(experiment, "evaluate", side_effect=loop.Stopped(3, "evaluation"))
    with contextlib.ExitStack() as stack:
        try:
            rest = stack.enter_context(
                fresh_flags.parsed(*arguments, *(f"--config.{line}" for line in lines))
            )
        except SystemExit as left:
            return 1, str(left.code).splitlines()
        errors = stack.enter_context(mock.patch.object(main.commands.logging, "error"))
        stack.enter_context(stop)
        stack.enter_context(mock.patch.object(main.mesh, "split_cpu"))
        stack.enter_context(mock.patch.object(main.commands.compilation_cache, "enable"))
        status = main.main(rest)
    texts = [call.args[0] % call.args[1:] for call in errors.call_args_list]
    return status, [line for text in texts for line in text.splitlines()]


def steps_taken(workdir: pathlib.Path) -> list[int]:
    with Checkpointer(workdir / "checkpoints") as checkpointer:
        return checkpointer.steps()


class FuzzTest(absltest.TestCase):
    """Goes through all commands, and says at the end which ones came out wrong."""

    outcomes: list[str] = []
    wrong: list[str] = []
    longest = 0.0

    @hypothesis.settings(
        max_examples=COMMANDS,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(commands())
    def go_through(self, command):
        try:
            outcome = self.outcome(*command)
        except Exception as error:  # also what the program lets through, a traceback for its user
            outcome = "wrong"
            self.wrong.append(f"{command}: {type(error).__name__}: {error}")
        self.outcomes.append(outcome)
        print(len(self.outcomes), outcome, command, file=sys.stderr, flush=True)

    def outcome(self, study, variant, settings) -> str:
        with tempfile.TemporaryDirectory() as folder:
            workdir = pathlib.Path(folder) / "run"
            start = time.process_time()
            status, lines = run(workdir, study, variant, settings)
            seconds = time.process_time() - start
            type(self).longest = max(self.longest, seconds)
            self.assertLess(seconds, SECONDS)
            if status == 75:
                self.assertEqual(steps_taken(workdir), [3])
                return "3 steps"
        self.assertEqual(status, 1)
        self.assertLen(lines, 1)
        names = [re.escape(name.split(".")[-1]) for name, _ in settings]
        self.assertRegex(lines[0], "|".join(names))
        return "refused"

    def test_every_command_line(self):
        self.go_through()
        steps = self.outcomes.count("3 steps")
        print(f"{steps} of {len(self.outcomes)} took 3 steps, longest {self.longest:.1f} s")
        self.assertGreaterEqual(len(self.outcomes), COMMANDS)
        self.assertGreater(steps, COMMANDS // 6)
        self.assertEqual(self.wrong, [], "\n".join(self.wrong))


if __name__ == "__main__":
    absltest.main()
