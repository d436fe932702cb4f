"""What stands on a command line besides plain flags."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

import fresh_flags
from absl.testing import absltest, parameterized

from apd_jax import main, studies
from apd_jax.run import command_line

ROOT = pathlib.Path(__file__).parent.parent
TMS = f"--config={ROOT}/configs/tms.py"


class ConfigTest(parameterized.TestCase):
    @parameterized.parameters(
        (["--config=configs/tms.py"], ["--config={}/configs/tms.py"]),
        (["-config", "configs/tms.py:40-10"], ["-config", "{}/configs/tms.py:40-10"]),
        (["--config=mine.py:configs/tms.py"], ["--config=mine.py:configs/tms.py"]),
        (["--config=none.py", "--config.seeds=3"], ["--config=none.py", "--config.seeds=3"]),
        (["--workdir=configs/tms.py"], ["--workdir=configs/tms.py"]),
    )
    def test_configs_of_the_checkout_are_found_from_anywhere(self, argv, expected):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            pathlib.Path("mine.py").touch()
            found = command_line.find_config(["main", *argv])
        self.assertEqual(found, ["main", *(argument.format(ROOT) for argument in expected)])


class UnsetTest(parameterized.TestCase):
    @parameterized.parameters("rank", "topk", "halflife", "wandb.project")
    def test_optional_fields(self, name):
        for none in ("none", "None", "NONE"):
            with fresh_flags.parsed(TMS, f"--config.{name}=3", f"--config.{name}={none}"):
                value = main._CONFIG.value
                for part in name.split("."):
                    value = value[part]
                self.assertIsNone(value)

    @parameterized.parameters(
        ("--config.steps=none", "steps.*none"),
        ("--config.stepz=none", "stepz.*Did you mean"),
        ("--config.target.probability=none", "probability.*none"),
    )
    def test_others(self, argument, message):
        refused = self.assertRaisesRegex(SystemExit, f"cannot be used: .*{message}")
        with refused, fresh_flags.parsed(TMS, argument):
            pass

    def test_a_number_after_none_counts(self):
        with fresh_flags.parsed(TMS, "--config.rank=none", "--config.rank=2"):
            self.assertEqual(main._CONFIG.value.rank, 2)


class HelpTest(parameterized.TestCase):
    def help(self, *arguments):
        with (
            mock.patch("sys.stdout", io.StringIO()) as out,
            self.assertRaises(SystemExit) as left,
            fresh_flags.parsed(*arguments),
        ):
            pass
        self.assertEqual(left.exception.code, 0)
        return out.getvalue()

    @parameterized.parameters("--help", "-h", "--helpfull")
    def test_everything_is_listed(self, flag):
        text = self.help(flag)
        for name, study in studies.find_all().items():
            for variant in study.variants:
                self.assertRegex(text, f"configs/{name}.py:{variant} ")
        self.assertRegex(
            text, r"\* --config.rank=none\n +m, the rank of each component at every site; min"
        )
        self.assertRegex(text, r"  --config.steps=10000\n +Optimiser steps")
        self.assertRegex(text, r"--config.schedule=cosine\n +.*constant, linear, cosine")
        self.assertIn("--config.wandb.mode=none", text)
        self.assertLess(max(map(len, text.splitlines())), 101)

    def test_values_of_a_config(self):
        text = self.help("--help", TMS + ":40-10", "--config.steps=7")
        self.assertIn("  --config.steps=7\n", text)
        self.assertIn("--config.target.num_features=40\n", text)
        self.assertNotIn("d_resid", text)

    def test_no_config(self):
        with fresh_flags.parsed() as rest, self.assertLogs("absl", "ERROR") as logs:
            self.assertEqual(main.main(rest), 1)
        self.assertIn("--config is missing; --help lists everything.", logs.output[0])


if __name__ == "__main__":
    absltest.main()
