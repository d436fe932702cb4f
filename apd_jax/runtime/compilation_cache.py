"""Compiled programs, kept on disk between runs."""

import os
import pathlib

import jax


def enable() -> None:
    """Keep compiled programs in `$XDG_CACHE_HOME/apd_jax`, where only this user may write.

    What lies there is run as it is: where others may write, nothing is kept.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "apd_jax"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = cache.stat()
    except OSError:
        return
    if status.st_uid == os.getuid() and not status.st_mode & 0o022:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
