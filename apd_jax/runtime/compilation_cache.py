"""JAX's cache of compiled programs on disk."""

import os
import pathlib
from typing import Any

import jax


def enable() -> None:
    """Cache compiled programs in `$XDG_CACHE_HOME/apd_jax`, where only this user may write.

    Cached programs are executed without checks, so a directory that others may write to is not
    used. A cache that the user configured for JAX stays in use.
    """
    config: Any = jax.config  # whose types omit the settings
    if config.jax_compilation_cache_dir or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = _home_of_caches() / "apd_jax"
    if not cache.is_absolute():
        return
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = cache.stat()
    except OSError:
        return
    # Windows has no user numbers, and keeps home directories to their users by itself.
    ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if ours and not status.st_mode & 0o022:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _home_of_caches() -> pathlib.Path:
    """The user's cache directory, or a relative path if it is unknown.

    By the XDG specification an empty or relative variable counts as unset.
    """
    named = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute() or os.environ.get("HOME") == "":
        return named
    return pathlib.Path(os.path.expanduser("~/.cache"))
