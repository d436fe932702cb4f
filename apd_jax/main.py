"""Command line: `python -m apd_jax.main --config=configs/tms.py:40-10 --workdir=DIR`."""

import os
import pathlib
import shlex
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from apd_jax import experiment, loop
from apd_jax.runtime import preemption

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, such as configs/tms.py:5-2.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; runs/NAME-VARIANT if unset.")


def _use_compilation_cache() -> None:
    """Keep compiled programs between runs, in a directory that only this user writes to."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "apd_jax"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return
    if cache.stat().st_uid == os.getuid():
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    logging.set_verbosity(logging.INFO)
    config = _CONFIG.value
    workdir = _WORKDIR.value or f"runs/{config.name}-{config.variant}".rstrip("-")
    command = shlex.join(["python", "-m", "apd_jax.main", *sys.argv[1:]])
    _use_compilation_cache()
    try:
        with preemption.catch_signals() as flag:
            results = experiment.run(config, workdir, command=command, flag=flag)
    except loop.Stopped as stopped:
        logging.info("%s; the same command goes on from there", stopped)
        return preemption.EXIT_RESUME
    except (ValueError, OSError, loop.Diverged) as error:
        logging.error("%s", error)
        return 1
    for verdict in results["verdicts"]:
        sign = "PASS" if verdict["passed"] else "FAIL"
        print(f"{sign} {verdict['name']} = {verdict['value']:.4g} ({verdict['description']})")
    print(f"results, figures and report are in {workdir}")
    return 0


def cli() -> None:
    """Entry point of the installed command."""
    flags.mark_flag_as_required("config")
    app.run(main)


if __name__ == "__main__":
    cli()
