"""The command line again and again in one process, each time as if for the first time."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from unittest import mock

from absl import flags
from ml_collections import config_flags

from apd_jax import main
from apd_jax.run import command_line, commands


@contextlib.contextmanager
def parsed(*arguments: str) -> Iterator[list[str]]:
    """Flags of their own, set by a command line; gives what is left of it for `main.main`."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, flag_values=values)
    holders = {"_CONFIG": config}
    for name, holder in vars(main).items():
        if isinstance(holder, flags.FlagHolder) and name not in holders:
            values[holder.name] = copy.deepcopy(flags.FLAGS[holder.name])
            holders[name] = flags.FlagHolder(values, values[holder.name])
    argv = ["main", *arguments]
    with (
        mock.patch.object(flags, "FLAGS", values),
        mock.patch.multiple(main, **holders),
        mock.patch.object(sys, "argv", argv),
    ):
        yield commands.parse(config, argv, screen=command_line.help_text)
