"""The grid of a sweep: which fields of a config take which values, and a name for every point."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from apd_jax import config_fields, studies
from apd_jax.errors import UserError
from apd_jax.run.config import Config, kind

_COEFFICIENT = "coefficients."
_FIXED = ("name", "variant", "seed", "seeds")
_HINT = "--grid FIELD=VALUE,VALUE, such as --grid simplicity=0.3,0.7"
Grid = Mapping[str, tuple[Any, ...]]


class GridPoint(NamedTuple):
    """One point of a grid.

    Attributes:
      name: name of its directory, `simplicity=0.3,topk=0.15`.
      values: the value of every swept field, by dotted name.
    """

    name: str
    values: dict[str, Any]


def read_grid(config: ml_collections.ConfigDict, texts: Sequence[str]) -> Grid:
    """Read the swept fields of a command line.

    Args:
      config: the config whose fields are swept.
      texts: `FIELD=VALUE,VALUE,...`, one per field. A coefficient may be named without
        `coefficients.`, other fields by their dotted name (`refine.every`, `target.num_hidden`).

    Returns:
      The values of every swept field, `{dotted name: values}`.

    Raises:
      UserError: no field; an unknown field, one that does not change results, or one that is given
        twice; no value, a value that is given twice, or one of another type than the field's.
    """
    if not texts:
        raise UserError(f"a sweep needs at least one field: {_HINT}")
    record = Config(target=studies.find(config.name).task)
    fields = {name: (field, value) for name, field, value in config_fields.leaves(record)}
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        short, equals, listed = text.partition("=")
        if not equals or not short or not listed:
            raise UserError(f"a field and its values are expected ({_HINT}), got {text!r}")
        name = short if short in fields else f"{_COEFFICIENT}{short}"
        if name not in fields:
            config_fields.check_names([short], fields, "--grid: there is no field")
        _check_field(name, config_fields.free_names(record))
        if name in grid:
            raise UserError(f"--grid: {name} is given twice")
        values = tuple(_value(name, *fields[name], text) for text in listed.split(","))
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise UserError(f"--grid: {name} has the value {twice[0]!r} twice")
        grid[name] = values
    return grid


def _check_field(name: str, free: Sequence[str]) -> None:
    if name in _FIXED:
        ways = "--config for another experiment, --config.seed and --seeds for seeds"
        raise UserError(f"--grid: {name} cannot be swept; use {ways}")
    if name.partition(".")[0] in free:
        raise UserError(f"--grid: {name} does not change results; set it by --config.{name}")


def _value(name: str, field: Any, default: Any, text: str) -> Any:
    """Read one value of a field."""
    wanted, text = kind(field, default), text.strip()
    if text.lower() == "none" and config_fields.optional(field):
        return None
    booleans = {"true": True, "false": False}
    try:
        if wanted is bool:
            return booleans[text.lower()]
        if wanted in (int, float, str) and text:
            return wanted(text)
    except (ValueError, KeyError):
        pass
    if wanted not in (bool, int, float, str):
        raise UserError(f"--grid: {name} is a {wanted.__name__}, which cannot be swept")
    nouns = {bool: "true or false", int: "whole numbers", float: "numbers", str: "words"}
    raise UserError(f"--grid: the values of {name} must be {nouns[wanted]}, got {text!r}")


def points(grid: Grid) -> list[GridPoint]:
    """All points of a grid, the values of the last field changing fastest."""
    found: list[GridPoint] = []
    names: set[str] = set()
    for values in itertools.product(*grid.values()):
        own = dict(zip(grid, values, strict=True))
        text = ",".join(f"{name.removeprefix(_COEFFICIENT)}={value}" for name, value in own.items())
        name = re.sub(r"[^\w.,=+-]", "_", text)
        if name in names:  # the values differ only in replaced characters
            name = f"{name}-{len(found)}"
        names.add(name)
        found.append(GridPoint(name, own))
    return found
