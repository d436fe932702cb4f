"""Command line: `apd-jax --config=tms:40-10 --workdir=DIR`, or `python -m apd_jax.main ...`."""

import logging as std_logging
import shlex
import signal
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from apd_jax.errors import UserError
from apd_jax.run import command_line
from apd_jax.runtime import compilation_cache, mesh, preemption, streams, versions
from apd_jax.runtime.outcome import Stopped

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as tms:5-2.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/NAME-VARIANT if unset.")


def main(argv: list[str]) -> int:
    """Run the experiment that the flags describe, and return the exit status."""
    if len(argv) > 1 or _CONFIG.value is None:
        problem = f"unexpected arguments {argv[1:]}" if len(argv) > 1 else "--config is missing"
        logging.error("The command line cannot be used: %s; --help lists everything.", problem)
        return 1
    from apd_jax.run import experiment, seed_evidence  # not for --help: they import every library

    std_logging.getLogger("jax").setLevel(std_logging.WARNING)  # it lists what it did not find
    compilation_cache.enable()
    try:
        config = _CONFIG.value
        mesh.split_cpu(max(config.seeds, 1))
        workdir = _WORKDIR.value or f"runs/{config.name}-{config.variant}".rstrip("-")
        command = shlex.join(["python", "-m", "apd_jax.main", *sys.argv[1:]])
        with preemption.catch_signals() as flag:
            results = experiment.run(config, workdir, command=command, flag=flag)
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
    for verdict in results["verdicts"]:
        sign = "PASS" if verdict["passed"] else "FAIL"
        streams.say(f"{sign} {verdict['name']} = {verdict['value']:.4g} ({verdict['description']})")
    for seed, found in results.get("evidence_verdicts", {}).items():
        if found["failed"] == [seed_evidence.NOT_MEASURED]:
            streams.say(f"evidence of seed {seed}: {seed_evidence.NOT_MEASURED}; see the log")
            continue
        failed = f"; FAIL {', '.join(found['failed'])}" if found["failed"] else ""
        total = found["passed"] + len(found["failed"])
        streams.say(f"evidence of seed {seed}: {found['passed']} of {total} verdicts pass{failed}")
    streams.say(f"results, figures and report are in {workdir}")
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Read the flags, or exit with a one-line error; ml_collections raises many kinds."""
    try:
        argv = command_line.find_config(argv)
        wish = command_line.asks_for(argv)
        if wish in ("screen", "version"):
            version = versions.version("apd_jax")
            streams.say(f"apd_jax {version}" if wish == "version" else command_line.help_text())
            sys.exit(0)
        from apd_jax.run import field_flags  # it imports every library

        if wish == "fields":
            flags.FLAGS(command_line.without_help(argv))
            streams.say(field_flags.help_text(_CONFIG.value))
            sys.exit(0)
        argv, unset = field_flags.take_unset(argv)
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.update_from_flattened_dict(dict.fromkeys(unset))
        return rest
    except (UserError, flags.Error, AttributeError, KeyError, OSError) as error:
        # The name of an unknown field comes as a KeyError inside an AttributeError.
        unknown = next((arg.args[0] for arg in error.args if isinstance(arg, KeyError)), error)
        lines = [line.strip() for line in str(unknown).strip().splitlines()]
        text = lines[-1] if "Traceback (most recent call last):" in lines else " ".join(lines)
        text = text.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        sys.exit(f"The command line cannot be used: {text}")


def cli() -> None:
    """Entry point of the installed command."""
    streams.open_missing()
    flags.FLAGS.set_default("verbosity", logging.INFO)
    logging.get_absl_handler().setFormatter(streams.LogLines())
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    cli()
