"""What the commands have in common: their start, the parsing of flags, and the exit status.

The imports are light: --help and --version answer without the package's libraries.
"""

import functools
import logging as std_logging
import os
import signal
import sys
import traceback
from collections.abc import Callable

import jax
from absl import app, flags, logging

import apd_jax
from apd_jax.errors import UserError
from apd_jax.run import command_line
from apd_jax.runtime import compilation_cache, processes, streams
from apd_jax.runtime.outcome import Stopped

_NOUNS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def start(
    main: Callable[[list[str]], int], config: flags.FlagHolder, *, screen: Callable[[], str]
) -> None:
    """Run a command from the shell: parse its flags, call its `main` and exit with its status.

    Args:
      main: function of the arguments that are left; returns the exit status.
      config: the flag of the config.
      screen: returns the text of --help.
    """
    streams.open_missing()
    flags.FLAGS.set_default("verbosity", logging.INFO)
    logging.get_absl_handler().setFormatter(streams.LogLines())
    app.run(main, flags_parser=functools.partial(parse, config, screen=screen))


def prepare(config: flags.FlagHolder, argv: list[str]) -> bool:
    """Set up JAX's log and compilation cache for an experiment.

    Returns:
      False, with an error in the log, if no config was given or arguments are left over.
    """
    if len(argv) > 1 or config.value is None:
        problem = f"unexpected arguments {argv[1:]}" if len(argv) > 1 else "--config is missing"
        logging.error("The command line cannot be used: %s; --help lists everything.", problem)
        return False
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it reports every missing backend
    compilation_cache.enable()
    return True


def parse(config: flags.FlagHolder, argv: list[str], *, screen: Callable[[], str]) -> list[str]:
    """Parse the flags, or exit with a one-line error; ml_collections raises many kinds.

    Args:
      config: the flag of the config.
      argv: the command line.
      screen: returns the text of --help.
    """
    try:
        argv = command_line.find_config(argv)
        wish = command_line.asks_for(argv)
        if wish in ("screen", "version"):
            streams.say(f"apd_jax {apd_jax.__version__}" if wish == "version" else screen())
            sys.exit(0)
        from apd_jax.run import field_flags  # it imports every library

        field_flags.check_fields(argv)
        if wish == "fields":
            flags.FLAGS(command_line.without_help(argv))
            field_flags.check_config(command_line.config_file(argv), config.value)
            streams.say(field_flags.help_text(config.value))
            sys.exit(0)
        argv, unset = field_flags.take_unset(argv)
        rest = flags.FLAGS(argv)
        field_flags.check_config(command_line.config_file(argv), config.value)
        if config.value is not None:
            config.value.update_from_flattened_dict(dict.fromkeys(unset))
        return rest
    except (UserError, flags.Error, AttributeError, KeyError, OSError, SyntaxError) as error:
        text = _text_of(_reason(error, config, argv), command_line.config_file(argv))
        sys.exit(f"The command line cannot be used: {text}")


def _text_of(reason: Exception, file: str | None) -> str:
    """What is wrong, in one line, with the line of the config file that a failed look-up is in."""
    if isinstance(reason, AttributeError | KeyError):
        frames = traceback.extract_tb(reason.__traceback__)
        own = [f for f in frames if file and os.path.abspath(f.filename) == os.path.abspath(file)]
        place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
        # The name of an unknown field comes as a KeyError, mostly inside an AttributeError.
        unknown = next((e.args[0] for e in (*reason.args, reason) if isinstance(e, KeyError)), None)
        if own and own[-1] is frames[-1]:
            return f"{type(reason).__name__}: {reason}{place}"
        if unknown is not None:
            name, *near = str(unknown).splitlines()
            hint = near or ["--help=fields lists all fields"]
            return ". ".join([f"the config has no field {name}{place}", *hint])
    if isinstance(reason, flags.UnrecognizedFlagError):
        name = reason.flagname
        if name.startswith("config."):  # such flags are known once there is a config
            return f"--config is missing: give --config=NAME, whose field --{name} sets"
        if "Did you mean" not in str(reason):
            way = f"a field of the config is set by --config.{name}=VALUE"
            return f"there is no flag --{name}; {way}"
    if isinstance(reason, flags.IllegalFlagValueError):
        return _wrong_value(reason)
    lines = [line.strip() for line in str(reason).strip().splitlines()]
    text = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines)
    return text.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")


def _wrong_value(reason: flags.IllegalFlagValueError) -> str:
    """The value that a flag can't take, and what was expected; else the parser's own words."""
    text = str(reason)
    name, _, value = text.removeprefix("flag --").partition("=")
    value = value.removesuffix(f": {reason.__context__}")
    noun = _NOUNS.get(flags.FLAGS[name].flag_type()) if name in flags.FLAGS else None
    return f"--{name} must be {noun}, got {value!r}" if noun else text


def _reason(error: Exception, config: flags.FlagHolder, argv: list[str]) -> Exception:
    """The error, or the reason for it where a config file gives no config."""
    file, given = command_line.config_file(argv), command_line.given_config(argv)
    if file is None or given is None or isinstance(error, UserError):
        return error
    from apd_jax.run import field_flags

    if isinstance(error, AttributeError) and error.name == "get_config":
        return UserError(f"{field_flags.NO_CONFIG.format(file=file)}, got a file without it")
    try:
        # The file alone, as the flag has no value where a field could not be set.
        field_flags.check_config(file, flags.FLAGS[config.name].parser.parse(given))
        return error
    except UserError as reason:
        return reason
    except Exception:  # the file can't be read, as the error says
        return error


def status_of(work: Callable[[], int]) -> int:
    """Do the work of a command, log how it ended, and return the exit status."""
    try:
        return work()
    except Stopped as stopped:
        logging.info("%s; rerun the command to resume", stopped)
        return processes.EXIT_RESUME
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
