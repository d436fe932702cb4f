"""Command line: `python -m apd_jax.main --config=configs/tms.py:40-10 --workdir=DIR`."""

import logging as std_logging
import os
import pathlib
import shlex
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from apd_jax import loop
from apd_jax.errors import UserError
from apd_jax.run import experiment
from apd_jax.runtime import compilation_cache, mesh, preemption, streams

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/tms.py:5-2.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/NAME-VARIANT if unset.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it lists what it did not find
    compilation_cache.enable()
    try:
        config = _CONFIG.value
        mesh.split_cpu(max(config.seeds, 1))
        workdir = _WORKDIR.value or f"runs/{config.name}-{config.variant}".rstrip("-")
        command = shlex.join(["python", "-m", "apd_jax.main", *sys.argv[1:]])
        with preemption.catch_signals() as flag:
            results = experiment.run(config, workdir, command=command, flag=flag)
    except loop.Stopped as stopped:
        logging.info("%s; the same command goes on from there", stopped)
        return preemption.EXIT_RESUME
    except KeyboardInterrupt:
        logging.error("stopped at once; the same command goes on from the last checkpoint")
        return 128 + signal.SIGINT
    except (UserError, OSError) as error:  # anything else is a mistake of ours: with traceback
        logging.error("%s", error)
        logging.debug("This happened here:", exc_info=True)
        return 1
    for verdict in results["verdicts"]:
        sign = "PASS" if verdict["passed"] else "FAIL"
        streams.say(f"{sign} {verdict['name']} = {verdict['value']:.4g} ({verdict['description']})")
    streams.say(f"results, figures and report are in {workdir}")
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Read the flags, or leave with one line; for a config, ml_collections raises many."""
    try:
        return flags.FLAGS(_find_config(argv))
    except (flags.Error, AttributeError, KeyError, OSError) as error:
        # The name of an unknown field comes as a KeyError inside an AttributeError.
        unknown = next((arg.args[0] for arg in error.args if isinstance(arg, KeyError)), error)
        lines = [line.strip() for line in str(unknown).strip().splitlines()]
        text = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines)
        sys.exit(f"The command line cannot be used: {text}")


def _find_config(argv: list[str]) -> list[str]:
    """Take a config that is not where the command is given from the checkout of this package."""
    checkout, found = pathlib.Path(__file__).parents[1], list(argv)
    for i, argument in enumerate(argv):
        flag, path = argument.split("=", 1) if "=" in argument else (argv[i - 1], argument)
        file = path.split(":")[0]
        elsewhere = flag.lstrip("-") == "config" and not os.path.exists(file)
        if elsewhere and (checkout / file).is_file():
            found[i] = f"{argument.removesuffix(path)}{checkout / path}"
    return found


def cli() -> None:
    """Entry point of the installed command."""
    streams.open_missing()
    flags.mark_flag_as_required("config")
    flags.FLAGS.set_default("verbosity", logging.INFO)
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
