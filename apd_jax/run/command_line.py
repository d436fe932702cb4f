"""What the command line has besides plain flags: names of configs, --help and --version.

The imports are light: --help and --version answer without the package's libraries.
"""

import ast
import os
import pathlib
import textwrap
from collections.abc import Iterator

from apd_jax import studies
from apd_jax.errors import UserError

_SCREEN = {"-h", "-help", "--help", "-helpshort", "--helpshort"}
_FIELDS = {"-help=fields", "--help=fields", "-helpfull", "--helpfull"}
_USAGE = """\
Train a network, decompose its weights into parameter components, and report.

  apd-jax --config=CONFIG:VARIANT [--workdir=DIR] [--config.FIELD=VALUE ...]
  apd-jax --config=tms:5-2      # the paper's first toy model; takes a minute

Configs and their variants:
{configs}

Flags:
  --config=CONFIG:VARIANT  one of the above, or a file of yours: mine.py:variant
  --workdir=DIR            directory of the run (runs/CONFIG-VARIANT if unset);
                           rerunning the command resumes the run in it
  --config.FIELD=VALUE     set a field; none unsets an optional one
  --plan                   print memory and operations of a step; run nothing
  --help=fields            all fields; with --config, the values of that config
  --version                the version

Often set: steps, batch_size, learning_rate, seed, seeds, restarts, topk,
num_components, rank, coefficients.simplicity, target.steps, evidence_samples.
`python -m apd_jax.main` is the same command. Exit status: 0 finished, 1 failed,
75 stopped by a signal and saved."""


def asks_for(argv: list[str]) -> str | None:
    """What a command line asks for instead of a run: "screen", "fields", "version" or None."""
    if not _FIELDS.isdisjoint(argv):
        return "fields"
    if not _SCREEN.isdisjoint(argv):
        return "screen"
    return None if {"-version", "--version"}.isdisjoint(argv) else "version"


def without_help(argv: list[str]) -> list[str]:
    """The arguments without those that ask for help."""
    return [argument for argument in argv if argument not in _SCREEN | _FIELDS]


def config_folder() -> pathlib.Path:
    """The folder of the package's own configs: in a wheel inside the package, else beside it."""
    package = pathlib.Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(argv: list[str]) -> list[str]:
    """Replace the name of a config, such as `tms:5-2`, by the path of its file.

    A path without a file here, such as `configs/tms.py`, is looked up beside the package.

    Raises:
      UserError: no such config.
    """
    found = list(argv)
    for i, given in _configs(argv):
        name, variant = _parted(given)
        found[i] = f"{argv[i].removesuffix(given)}{_locate(name)}{variant}"
    return found


def given_config(argv: list[str]) -> str | None:
    """What a command line gives as the config, a file and its variant; None without one."""
    return next((given for _, given in _configs(argv)), None)


def config_file(argv: list[str]) -> str | None:
    """The file of the config, without its variant; None without one."""
    given = given_config(argv)
    return None if given is None else _parted(given)[0]


def _configs(argv: list[str]) -> Iterator[tuple[int, str]]:
    """Places of configs among the arguments, and what is given as the config there."""
    for i, argument in enumerate(argv):
        flag, given = argument.split("=", 1) if "=" in argument else (argv[i - 1], argument)
        if flag.lstrip("-") == "config" and not given.startswith("-"):
            yield i, given


def _parted(given: str) -> tuple[str, str]:
    """A config without its variant, and the variant with its colon; C: of Windows stays."""
    drive, rest = os.path.splitdrive(given)
    name, colon, variant = rest.partition(":")
    return drive + name, colon + variant


def _locate(name: str) -> str:
    """The path of the file of a config."""
    folder = config_folder()
    places = (pathlib.Path(name), folder.parent / name, folder / f"{name}.py")
    path = next((str(place) for place in places if place.is_file()), None)
    if path is None:
        known = ", ".join(sorted(studies.VARIANTS))
        raise UserError(
            f"there is no config {name!r}: give the path of a file, such as mine.py, or one of "
            f"{known}"
        )
    # ml_collections ends a path at its first colon; on Windows that is the colon of `C:`.
    return os.path.relpath(path) if ":" in path else path


def help_text() -> str:
    """The text of --help, which fits a screen: flags, and configs with their variants."""
    lines = []
    for name, variants in studies.VARIANTS.items():
        docstring = ast.get_docstring(
            ast.parse((config_folder() / f"{name}.py").read_text("utf-8"))
        )
        lines.append(f"  {name:16} {(docstring or '').splitlines()[0]}")
        lines += textwrap.wrap(
            ", ".join(variants), 79, initial_indent=19 * " ", subsequent_indent=19 * " "
        )
    return _USAGE.format(configs="\n".join(lines))
