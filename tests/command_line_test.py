"""What stands on a command line besides plain flags."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import fresh_flags
from absl import flags
from absl.testing import absltest, parameterized
from ml_collections import config_flags

from apd_jax import main, studies
from apd_jax.errors import UserError
from apd_jax.run import command_line, commands

ROOT = pathlib.Path(__file__).parent.parent
TMS = f"--config={ROOT}/configs/tms.py"


class ConfigTest(parameterized.TestCase):
    @parameterized.parameters(
        (["--config=tms:5-2"], ["--config={}/configs/tms.py:5-2"]),
        (["--config=configs/tms.py"], ["--config={}/configs/tms.py"]),
        (["-config", "configs/tms.py:40-10"], ["-config", "{}/configs/tms.py:40-10"]),
        (["--config=mine.py:configs/tms.py"], ["--config=mine.py:configs/tms.py"]),
        (["--config.seeds=3", "--workdir=configs/tms.py"],) * 2,
    )
    def test_configs_of_the_package_are_found_from_anywhere(self, argv, expected):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            pathlib.Path("mine.py").touch()
            pathlib.Path("tms").mkdir()
            found = command_line.find_config(["main", *argv])
        self.assertEqual(found, ["main", *(argument.format(ROOT) for argument in expected)])

    @parameterized.parameters("tmz:5-2", "none.py", "configs/none.py:5-2", "")
    def test_there_is_no_such_config(self, given):
        name = given.partition(":")[0]
        with self.assertRaisesRegex(UserError, f"no config '{name}': .*file.* or one of .*, tms$"):
            command_line.find_config(["main", f"--config={given}"])

    def test_paths_with_colons(self):
        # ml_collections ends a path at its first colon; Windows has one after the drive.
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder) / "a:b"
            shutil.copytree(ROOT / "configs", folder / "configs")
            with (
                mock.patch.object(command_line, "config_folder", lambda: folder / "configs"),
                contextlib.chdir(folder),
            ):
                found = command_line.find_config(["main", "--config=tms:5-2"])
        self.assertEqual(found[1], f"--config={os.path.join('configs', 'tms.py')}:5-2")


class NoConfigTest(parameterized.TestCase):
    """Files that give no config of a run."""

    @parameterized.product(
        case=(
            ("def get_config(): return 3", "got 3"),
            ("def get_config(): return {'seeds': 1}", "got {'seeds':"),
            (
                "import ml_collections as m\nget_config = m.ConfigDict",
                "got one without name, variant",
            ),
            (
                "import ml_collections as m\ndef get_config():\n return m.ConfigDict({'seeds': 1})",
                "got one without name, variant, mesh, target",
            ),
            ("x = 1", "got a file without it"),
        ),
        more=([], ["--config.seeds=3"], ["--help=fields"]),
    )
    def test_is_said_in_a_sentence(self, case, more):
        text, got = case
        message = r"mine.py: get_config must return a ConfigDict as configs/tms.py does.*, " + got
        self.check(text, message, more)

    def test_what_is_no_program(self):
        self.check("def get_config(:", r"invalid syntax \(mine.py, line 1\)")

    def test_errors_of_its_own_code(self):
        self.check("\ndef get_config(): return {}['x']", r"KeyError: 'x' \(mine.py, line 2\)$")
        self.check("\ndef get_config(): None.x", r"AttributeError: .*'x' \(mine.py, line 2\)$")
        start = "import ml_collections\ndef get_config(): "
        self.check(
            f"{start}return ml_collections.ConfigDict().x",
            r"the config has no field 'x' \(mine.py, line 2\)[.] --help=fields lists all fields$",
        )

    def test_nothing_returned(self):
        self.check("def get_config(): pass", "mine.py: get_config must return a ConfigDict.* None")

    def check(self, text, message, more=()):
        values = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", None, "Config.", flag_values=values)
        argv = ["main", "--config=mine.py", *more]
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            mock.patch.object(flags, "FLAGS", values),
            mock.patch.object(sys, "argv", argv),
            self.assertRaisesRegex(SystemExit, f"^The command line cannot be used: {message}"),
        ):
            # The name by which config files are loaded, into the module that is there.
            sys.modules.pop("config_config", None)
            pathlib.Path("mine.py").write_text(text)
            commands.parse(config, argv, screen=str)


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
        ("--steps=3", "there is no flag --steps; .* is set by --config.steps=VALUE$"),
        ("--config.target.zzz=none", "the config has no field 'zzz'. --help=fields"),
        ("--config.target.zzz=1", "the config has no field 'zzz'. --help=fields"),
        ("--config.zzz.a=1", "the config has no field 'zzz'. --help=fields"),
        ("--config.learning-rate=1", "no field 'learning-rate'. Did you mean 'learning_rate'"),
        ("--config.refine..every=1", "no field 'refine..every'. Did you mean 'refine.every'"),
        ("--config.target.steps.x=1", "no field 'target.steps.x'. Did you mean 'target.steps'"),
        ("--config.name.x=1", "no field 'name.x'"),
        ("--config.=1", "no field ''. --help=fields"),
        ("--config.steps=1.5", "--config.steps must be a whole number, got '1.5'$"),
        ("--config.topk=a: b", "--config.topk must be a number, got 'a: b'$"),
        ("--config.tensorboard=x", "--config.tensorboard must be true or false, got 'x'$"),
        ("--config.target=none", "set them by --config.target.FIELD=VALUE$"),
        # A group that is set as a whole would have the defaults of another variant.
        ("--config.target={'steps': 3}", "set them by --config.target.FIELD=VALUE$"),
        ("--config.coefficients=1", "set them by --config.coefficients.FIELD=VALUE$"),
        # The fields of 5-2 would run as, and be compared with, another variant.
        ("--config.variant=40-10", "variant cannot be set.*by --config=NAME:VARIANT$"),
        ("--config.name=resid_mlp", "name cannot be set.*by --config=NAME:VARIANT$"),
    )
    def test_others(self, argument, message):
        refused = self.assertRaisesRegex(SystemExit, f"cannot be used: .*{message}")
        with refused, fresh_flags.parsed(TMS, argument):
            pass

    @parameterized.parameters((), ("--help=fields",))
    def test_fields_without_a_config(self, *more):
        refused = self.assertRaisesRegex(SystemExit, "--config is missing.*--config.steps sets$")
        with refused, fresh_flags.parsed("--config.steps=3", *more):
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

    @parameterized.parameters(("--help",), ("-h",), ("--helpshort", TMS))
    def test_help_fits_a_screen(self, *arguments):
        text = self.help(*arguments)
        for name, variants in studies.VARIANTS.items():
            self.assertRegex(text, rf"\n  {name} +\S+")
            words = re.findall(r"[\w-]+", text)
            self.assertContainsSubset(variants, words)
        lines = text.splitlines()
        self.assertBetween(len(lines), 24, 40)
        self.assertLessEqual(max(map(len, lines)), 80)

    def test_version(self):
        self.assertRegex(self.help("--version"), r"^apd_jax (\d|not installed)")

    def test_help_waits_for_no_large_library(self):
        code = (
            "import sys\nsys.argv = ['apd-jax', '--help']\nfrom apd_jax import main\n"
            "try:\n    main.cli()\nexcept SystemExit:\n    print(*sorted(sys.modules), sep='\\n')"
        )
        command = [sys.executable, "-c", code]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        self.assertIn("tms", shown)
        slow = {"flax", "optax", "orbax", "matplotlib", "scipy", "jinja2", "PIL", "torch"}
        self.assertEmpty(slow & set(shown))

    @parameterized.parameters("--help=fields", "--helpfull")
    def test_fields(self, flag):
        text = self.help(flag)
        self.assertRegex(
            text, r"\* --config.rank=none\n +m, the rank of each component at every site; min"
        )
        self.assertRegex(text, r"  --config.steps=10000\n +Optimiser steps")
        self.assertRegex(text, r"--config.schedule=cosine\n +.*constant, linear, cosine")
        self.assertIn("--config.wandb.mode=none", text)
        self.assertIn("--config.target.d_resid=", text)
        self.assertLess(max(map(len, text.splitlines())), 101)

    def test_values_of_a_config(self):
        text = self.help("--help=fields", TMS + ":40-10", "--config.steps=7")
        self.assertIn("  --config.steps=7\n", text)
        self.assertIn("--config.target.num_features=40\n", text)
        self.assertNotIn("d_resid", text)

    def test_no_config(self):
        with fresh_flags.parsed() as rest, self.assertLogs("absl", "ERROR") as logs:
            self.assertEqual(main.main(rest), 1)
        self.assertIn("--config is missing; --help lists everything.", logs.output[0])

    def test_help_imports_no_large_library_besides_jax(self):
        code = (
            "import sys; from apd_jax import main; sys.argv = ['apd-jax', '--help']\n"
            "try: main.cli()\n"
            "finally: print({'flax', 'matplotlib', 'optax', 'orbax', 'scipy'} & set(sys.modules))"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        self.assertRegex(printed, r"(?s)^Train a network.*\nset\(\)\n$")


if __name__ == "__main__":
    absltest.main()
