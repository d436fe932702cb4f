"""Outputs of the functions of a decomposition, kept in its directory to recognise the functions.

A config holds only the names of functions. Without their outputs, a call could return or resume the
result of another network, sampling function, metric or loss.
Letters: B batch.
"""

import io
import math
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from apd_jax import sites
from apd_jax.data import Source
from apd_jax.decomposition import function_identity, rounding
from apd_jax.objective.objective import Objective
from apd_jax.runtime.workdir import Workdir, WorkdirError, WorkdirMismatch, atomic_write_bytes
from apd_jax.sites import PyTree, Target

FILE = "functions.npz"
_EXAMPLES = 64  # of rare features a few examples may hold none
_MOST = 2**20  # numbers that are kept of one array, about
_ROUNDING = 1e-5  # of draws on another machine
_MEANINGS = {  # the network first: the others change with it
    "network": "another network",
    "metric": "another function metric=",
    "valid": "another function valid=",
    "minimality_loss": "another function minimality_loss=",
}
_Arrays = dict[str, np.ndarray]


def claim(
    workdir: Workdir,
    target: Target,
    objective: Objective,
    source: Source,
    *,
    seed: int,
    batch_size: int,
) -> None:
    """Keep what the functions of a decomposition give, or check that they give what was kept.

    Args:
      workdir: its directory.
      target: the network.
      objective: holds the other functions, if there are any.
      source: the data; compared where they are the same at every call.
      seed: seed of the examples.
      batch_size: B; at most this many examples are kept.

    Raises:
      WorkdirMismatch: a function gives something else than what is kept there.
      WorkdirError: what was kept can't be read.
    """
    functions = objective.metric, objective.minimality_loss, objective.valid
    path = workdir.path / FILE
    kept = _read(path)
    if kept is None:
        count = _count(target, functions, source.examples(seed, 1), batch_size)
    else:
        count = len(kept["inputs/0"])
    x = source.examples(seed, count)
    leaves, tree = jax.tree.flatten(x)
    inputs = {f"inputs/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    if kept is None:
        _keep(
            workdir, path, inputs | jax.device_get(function_identity.given(target, x, *functions))
        )
        return
    _check_inputs(workdir, inputs, kept, source.repeats)
    x = jax.tree.unflatten(tree, [kept[name] for name in inputs])
    tolerance = rounding.tolerance(target, x)
    found = function_identity.given(target, x, *functions)
    for name in [name for name in _MEANINGS if name in found]:
        difference = function_identity.difference(found[name], kept[name], tolerance)
        if difference:
            _refuse(workdir, f"{_MEANINGS[name]}: on the examples kept there {difference}")


def _count(target: Target, functions: tuple, x: PyTree, batch_size: int) -> int:
    """How many examples are kept: fewer where one of them, or what is made of it, is large."""
    shapes = jax.eval_shape(lambda x: (x, function_identity.given(target, x, *functions)), x)
    largest = max(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / sites.batch_size(x)
    return max(1, min(batch_size, _EXAMPLES, int(_MOST / max(largest, 1))))


def _read(path: pathlib.Path) -> _Arrays | None:
    """Arrays by name; NumPy's files know types of its own alone, so the names hold these."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            named = [(name.partition(" "), file[name]) for name in file]
        return {name: array.view(jnp.dtype(kind)) for (name, _, kind), array in named}
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise WorkdirError(
            f"{path}, which identifies the functions of this directory, can't be read ({error}): "
            "put it back, or delete it if the functions are surely the same."
        ) from error


def _keep(workdir: Workdir, path: pathlib.Path, arrays: _Arrays) -> None:
    if workdir.checkpoints.exists():
        logging.warning(
            "%s has no %s, so that another network, sampling function, metric or loss cannot be "
            "detected: those given now are assumed to be the ones that it was started with.",
            workdir.path,
            FILE,
        )
    content = io.BytesIO()
    named: Any = {f"{name} {array.dtype.name}": array for name, array in arrays.items()}
    np.savez(content, **named)
    atomic_write_bytes(path, content.getvalue())


def _check_inputs(workdir: Workdir, inputs: _Arrays, kept: _Arrays, repeats: bool) -> None:
    """Raise WorkdirMismatch where data are not those that were kept, or not of their kind."""
    before = {name: array for name, array in kept.items() if name.startswith("inputs/")}
    if {n: _kind(a) for n, a in inputs.items()} != {n: _kind(a) for n, a in before.items()}:
        kinds = [list(map(_kind, arrays.values())) for arrays in (before, inputs)]
        _refuse(workdir, f"other data: inputs were {kinds[0]}, and are {kinds[1]}")
    for name, found in inputs.items():
        difference = function_identity.difference(found, kept[name], _ROUNDING) if repeats else ""
        if difference:
            _refuse(workdir, f"another sampling function, or other batches: {difference}")


def _kind(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    return array.dtype.name, array.shape[1:]


def _refuse(workdir: Workdir, what: str) -> None:
    raise WorkdirMismatch(
        f"{workdir.path} belongs to a decomposition with {what}. Take another workdir, or delete "
        "this one."
    )
