"""What a command line has in addition to plain flags: paths of configs, `none`, --help."""

import functools
import operator
import os
import pathlib
import textwrap

import ml_collections

from apd_jax import config_fields, studies
from apd_jax.run.config import Config

_HELP = {"-h", "-help", "--help", "-helpfull", "--helpfull", "-helpshort", "--helpshort"}
_USAGE = """\
Train a network, decompose its weights into parameter components, measure, draw and report:

  python -m apd_jax.main --config=CONFIG [--workdir=DIR] [--config.FIELD=VALUE ...]

Rerunning the command resumes the run in its directory. Fields marked * can be unset with
--config.FIELD=none. Values below are {whose}."""


def asks_for_help(argv: list[str]) -> bool:
    """Whether a command line asks for `help_text`."""
    return not _HELP.isdisjoint(argv)


def without_help(argv: list[str]) -> list[str]:
    """The other arguments."""
    return [argument for argument in argv if argument not in _HELP]


def find_config(argv: list[str]) -> list[str]:
    """Look for a config that is not in the current directory in this package's checkout."""
    checkout, found = pathlib.Path(__file__).parents[2], list(argv)
    for i, argument in enumerate(argv):
        flag, path = argument.split("=", 1) if "=" in argument else (argv[i - 1], argument)
        file = path.split(":")[0]
        elsewhere = flag.lstrip("-") == "config" and not os.path.exists(file)
        if elsewhere and (checkout / file).is_file():
            found[i] = f"{argument.removesuffix(path)}{checkout / path}"
    return found


def take_unset(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into arguments that set something, and names of fields set to none.

    Only fields that may be None are taken; `none` for any other field is left to the flag's own
    error.
    """
    if not any(argument.lower().endswith("=none") for argument in argv):
        return argv, []  # nothing to look up
    optional = {
        name
        for study in studies.find_all().values()
        for name, field, _ in config_fields.leaves(Config(target=study.task))
        if config_fields.optional(field)
    }
    kept: list[str] = []
    unset: list[str] = []
    for argument in argv:
        flag, _, value = argument.lstrip("-").partition("=")
        name = flag.removeprefix("config.")
        unset = [other for other in unset if other != name]  # the last one counts
        if value.lower() == "none" and flag == f"config.{name}" and name in optional:
            unset.append(name)
        else:
            kept.append(argument)
    return kept, unset


def help_text(config: ml_collections.ConfigDict | None = None) -> str:
    """The text of --help: configs with their variants, and every field with its sentence.

    Args:
      config: the config whose values are shown; the defaults if None.
    """
    shown = studies.find_all() if config is None else {config.name: studies.find(config.name)}
    whose = "defaults; a config sets its own" if config is None else "those of the given config"
    parts = [_USAGE.format(whose=whose), "Configs and their variants:\n" + _configs()]
    common = Config(target=None)
    values = None if config is None else config_fields.to_mapping(common) | config.to_dict()
    parts.append("Fields:\n" + _fields(common, values, skip="target"))
    for name, study in shown.items():
        task = None if values is None else values["target"]
        title = f"Fields of the network, configs/{name}.py:\n"
        parts.append(title + _fields(study.task, task, prefix="target."))
    return "\n\n".join(parts)


def _configs() -> str:
    return "\n".join(
        f"  {f'configs/{name}.py:{variant}':40} {study.title(variant)}"
        for name, study in studies.find_all().items()
        for variant in study.variants
    )


def _fields(record, values, *, prefix: str = "", skip: str = "") -> str:
    """The lines of all flags of a record; `values` replace the record's."""
    lines = []
    for name, field, value in config_fields.leaves(record):
        if name == skip:
            continue
        if values is not None:
            value = functools.reduce(operator.getitem, name.split("."), values)
        star = "*" if config_fields.optional(field) else " "
        head = f"{star} --config.{prefix}{name}={'none' if value is None else value}"
        options = [str(choice) for choice in config_fields.choices(field)]
        words = field.metadata.get("sentence", "") + (
            f" [{' | '.join(options)}]" if options else ""
        )
        lines += [
            head,
            *textwrap.wrap(words, 92, initial_indent=6 * " ", subsequent_indent=6 * " "),
        ]
    return "\n".join(lines)
