"""What commands have in common: paths of configs, `none`, --help, the exit status."""

import functools
import operator
import os
import pathlib
import signal
import sys
import textwrap
from collections.abc import Callable

import jax
import ml_collections
from absl import flags, logging

from apd_jax import config_fields, studies
from apd_jax.errors import UserError
from apd_jax.run.config import Config
from apd_jax.runtime import preemption, streams
from apd_jax.runtime.outcome import Stopped

_HELP = {"-h", "-help", "--help", "-helpfull", "--helpfull", "-helpshort", "--helpshort"}
_USAGE = """\
Train a network, decompose its weights into parameter components, measure, draw and report:

  python -m apd_jax.main --config=CONFIG [--workdir=DIR] [--config.FIELD=VALUE ...]

Rerunning the command resumes the run in its directory. --plan prints the memory, the operations
and the communication of a step on each device, and runs nothing. Fields marked * can be unset with
--config.FIELD=none. Values below are {whose}."""


def parse(config: flags.FlagHolder, argv: list[str], usage: str = _USAGE) -> list[str]:
    """Read the flags, or exit with a one-line error; ml_collections raises many kinds.

    Args:
      config: the flag of the config.
      argv: the command line.
      usage: beginning of the text of --help.
    """
    try:
        argv = find_config(argv)
        if asks_for_help(argv):
            flags.FLAGS(without_help(argv))
            streams.say(help_text(config.value, usage))
            sys.exit(0)
        argv, unset = take_unset(argv)
        rest = flags.FLAGS(argv)
        if config.value is not None:
            config.value.update_from_flattened_dict(dict.fromkeys(unset))
        return rest
    except (UserError, flags.Error, AttributeError, KeyError, OSError) as error:
        # The name of an unknown field comes as a KeyError inside an AttributeError.
        unknown = next((arg.args[0] for arg in error.args if isinstance(arg, KeyError)), error)
        lines = [line.strip() for line in str(unknown).strip().splitlines()]
        text = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines)
        sys.exit(f"The command line cannot be used: {text}")


def status_of(work: Callable[[], int]) -> int:
    """The exit status of a command's work, which may be stopped or refuse something."""
    try:
        return work()
    except Stopped as stopped:
        logging.info("%s; rerun the command to resume", stopped)
        return preemption.EXIT_RESUME
    except KeyboardInterrupt:
        logging.error("stopped at once; rerun the command to resume from the last checkpoint")
        return 128 + signal.SIGINT
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        logging.error("%s: lower seeds, batch_size, num_components or rank", reason)
        return 1
    except (UserError, OSError) as error:  # anything else is a bug, and keeps its traceback
        logging.error("%s", error)
        logging.debug("This happened here:", exc_info=True)
        return 1


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


def help_text(config: ml_collections.ConfigDict | None = None, usage: str = _USAGE) -> str:
    """The text of --help: configs with their variants, and every field with its sentence.

    Args:
      config: the config whose values are shown; the defaults if None.
      usage: its beginning, with a place for `whose` values are shown.
    """
    shown = studies.find_all() if config is None else {config.name: studies.find(config.name)}
    whose = "defaults; a config sets its own" if config is None else "those of the given config"
    parts = [usage.format(whose=whose), "Configs and their variants:\n" + _configs()]
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
