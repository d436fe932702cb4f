"""The lowest versions that setup.cfg promises are those that the tests are run with."""

import configparser
import pathlib
import re

from absl.testing import absltest

ROOT = pathlib.Path(__file__).parent.parent


def pins(path):
    """`{name: version}` of a requirements file."""
    lines = (ROOT / path).read_text().splitlines()
    found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in found}


def numbers(version):
    parts = [int(part) for part in version.split(".")]
    return parts + [0] * (4 - len(parts))


class LowestTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        wanted = config["options"]["install_requires"].split()
        found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in wanted]
        for_tests = config["options.extras_require"]["test"].split()
        found += [line.split(">=") for line in for_tests if ">=" in line]
        self.bounds = dict(found)

    def test_lowest_is_what_is_promised(self):
        lowest = pins("requirements-lowest.txt")
        for name, bound in self.bounds.items():
            self.assertEqual(numbers(lowest[name.lower()]), numbers(bound), name)

    def test_what_is_tested_otherwise_is_not_lower(self):
        tested = pins("requirements.txt")
        for name, bound in self.bounds.items():
            self.assertGreaterEqual(numbers(tested[name.lower()]), numbers(bound), name)


if __name__ == "__main__":
    absltest.main()
