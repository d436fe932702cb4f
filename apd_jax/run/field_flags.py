"""Fields of configs as flags: those that `none` unsets, and the text of --help=fields."""

import dataclasses
import difflib
import functools
import operator
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import ml_collections

from apd_jax import config_fields, studies
from apd_jax.errors import UserError
from apd_jax.run.config import Config

_INTRODUCTION = """\
Fields of a config, set by --config.FIELD=VALUE. Those marked * are unset by
--config.FIELD=none. The values are {whose}."""

NO_CONFIG = (
    "{file}: get_config must return a ConfigDict as configs/tms.py does, which starts from "
    "apd_jax.run.config.base_config"
)
CHOSEN = ("name", "variant")  # by the config that is given
_NEEDED = (*CHOSEN, "seeds", "mesh", "target")  # that are read before all are checked


def check_fields(argv: list[str]) -> None:
    """Raise UserError for fields that can't be set or looked up.

    Other unknown fields are left to the flag's own error.
    """
    flags = (re.match(r"--?(?:no)?config\.([^=]*)", argument) for argument in argv)
    names = [flag[1] for flag in flags if flag]
    leaves = {name for name, _, _ in _all_leaves()} if names else set()
    for name in names:
        if name in CHOSEN:
            raise UserError(
                f"--config.{name} cannot be set, as the other fields would stay those of the "
                "config: choose by --config=NAME:VARIANT"
            )
        if any(leaf.startswith(f"{name}.") for leaf in leaves):
            raise UserError(
                f"--config.{name} has fields of its own: set them by --config.{name}.FIELD=VALUE"
            )
        within = any(name.startswith(f"{leaf}.") for leaf in leaves)
        if within or not re.fullmatch(r"\w+(\.\w+)*", name):
            near = difflib.get_close_matches(name, leaves, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "--help=fields lists all fields"
            raise UserError(f"the config has no field {name!r}. {hint}")


def _all_leaves() -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Name, field and default of every field of every study."""
    for study in studies.find_all().values():
        yield from config_fields.leaves(Config(target=study.task))


def take_unset(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into arguments that set something, and names of fields set to none.

    Only fields that may be None are taken; `none` for any other field is left to the flag's own
    error.
    """
    if not any(argument.lower().endswith("=none") for argument in argv):
        return argv, []  # nothing to look up
    optional = {name for name, field, _ in _all_leaves() if config_fields.optional(field)}
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


def check_config(file: str | None, config: Any) -> None:
    """Raise UserError for what is no config of a run, as a config file may return.

    Args:
      file: the file that it comes from; None if no config was given.
      config: what its `get_config` returned.
    """
    if file is None:
        return
    is_config = isinstance(config, ml_collections.ConfigDict)
    missing = [name for name in _NEEDED if name not in config] if is_config else []
    if is_config and not missing:
        return
    got = f"one without {', '.join(missing)}" if is_config else repr(config)
    raise UserError(f"{NO_CONFIG.format(file=file)}, got {got:.200}")


def help_text(config: ml_collections.ConfigDict | None = None) -> str:
    """The text of --help=fields: every field with its sentence.

    Args:
      config: the config whose values are shown; the defaults if None.
    """
    shown = studies.find_all() if config is None else {config.name: studies.find(config.name)}
    whose = "defaults; a config sets its own" if config is None else "those of the given config"
    parts = [_INTRODUCTION.format(whose=whose)]
    common = Config(target=None)
    values = None if config is None else config_fields.to_mapping(common) | config.to_dict()
    parts.append(_fields(common, values, skip=(*CHOSEN, "target")))
    for name, study in shown.items():
        task = None if values is None else values["target"]
        title = f"Fields of the network of {name}:\n"
        parts.append(title + _fields(study.task, task, prefix="target."))
    return "\n\n".join(parts)


def _fields(record, values, *, prefix: str = "", skip: tuple[str, ...] = ()) -> str:
    """The lines of all flags of a record; `values` replace the record's."""
    lines = []
    for name, field, value in config_fields.leaves(record):
        if name in skip:
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
            *textwrap.wrap(words, 80, initial_indent=6 * " ", subsequent_indent=6 * " "),
        ]
    return "\n".join(lines)
