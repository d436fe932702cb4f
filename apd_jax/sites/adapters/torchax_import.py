"""Imports torchax, which runs torch's operators on JAX arrays, and leaves torch as it was.

torchax 0.0.13 names overloads for named tensors (`aten.prod.dim_Dimname` and others) that torch
2.13 no longer has, so that its import fails. While it is imported, and at no other time, a name of
this kind that torch lacks gives a placeholder, by which no operator is ever looked up. A torchax
that imports by itself asks for none.
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import torch
from jax.extend import source_info_util

from apd_jax.errors import UserError

_NAMED = ("dimname", "Dimname", "names")  # parts of the names of overloads for named tensors
_TELEMETRY = "ENABLE_RUNTIME_UPTIME_TELEMETRY"
_CLIENT_OPTIONS = "jax_pjrt_client_create_options"
_fast_path = threading.RLock()


@functools.cache
def load() -> Any:
    """The package torchax with all its operators.

    Raises:
      UserError: it is not installed, or does not fit this torch.
    """
    others = "torchax" in sys.modules  # who imported it before may rely on what it changes
    try:
        with _as_it_was(), named_overloads():
            torchax = _everything()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"torchax can't be imported with torch {torch.__version__} ({error}): pip install "
            "'apd_jax[torch]' installs compatible versions"
        ) from error
    if not others:
        _hide_device(torchax.device_module)
    _name_lines_of_modules(torchax)
    return torchax


def _name_lines_of_modules(torchax: Any) -> None:
    """Let JAX name lines of a module's forward as places of equations, not those of operators."""
    inside = ("_", "functional.py", "nn/functional.py", "overrides.py", "utils/_")
    places = (os.path.join(os.path.dirname(torch.__file__), name) for name in inside)
    for place in (*places, os.path.dirname(torchax.__file__), os.path.dirname(__file__)):
        source_info_util.register_exclusion(place)


def _hide_device(module: Any) -> None:
    """Let torch see no accelerator called jax, which it would pin memory and draw numbers on.

    With it, `DataLoader(pin_memory=True)` and `torch.random.fork_rng` raise in the whole process.
    """
    module.is_available = lambda: False
    module.device_count = lambda: 0


def _everything() -> Any:
    import torchax
    import torchax.decompositions
    import torchax.device_module
    import torchax.ops.jaten
    import torchax.ops.jtorch
    import torchax.ops.ops_registry
    import torchax.tensor

    return torchax


@contextlib.contextmanager
def named_overloads() -> Iterator[None]:
    """Let an overload for named tensors that torch does not have be a placeholder."""
    packet = torch._ops.OpOverloadPacket
    original = packet.__getattr__

    def found(self, name):
        try:
            return original(self, name)
        except AttributeError:
            if any(part in name for part in _NAMED):
                return object()
            raise

    packet.__getattr__ = found
    try:
        yield
    finally:
        packet.__getattr__ = original


@contextlib.contextmanager
def _as_it_was() -> Iterator[None]:
    """Take back what the import changes: torch's fast path, JAX's options, the environment."""
    fast = torch.backends.mha.get_fastpath_enabled()
    options = getattr(jax.config, _CLIENT_OPTIONS, None)
    telemetry = os.environ.get(_TELEMETRY)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if options is not None:
            jax.config.update(_CLIENT_OPTIONS, options)
        if telemetry is None:
            os.environ.pop(_TELEMETRY, None)


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Let torch's attention layers run operator by operator, which JAX can follow.

    The switch is one for all threads, so that one at a time holds it.
    """
    with _fast_path:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
