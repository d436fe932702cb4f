"""Checks of values and names; each raises UserError with the value and what was expected."""

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable, Collection, Iterable
from typing import Any, get_args, get_origin

import numpy as np

from apd_jax.config_fields.declaration import choices, optional
from apd_jax.errors import UserError


def number(value: Any) -> Any:
    """A NumPy scalar or an array [] as a Python number; any other value as it is."""
    is_scalar = isinstance(value, np.generic) or getattr(value, "shape", None) == ()
    return value.item() if is_scalar and hasattr(value, "item") else value


def check_values(record: Any, *, skip: tuple[str, ...] = ()) -> None:
    """Raise UserError if a value is not of its field's kind: a choice, a finite number, ...

    NumPy scalars and arrays [] become Python numbers first, in the record itself, so that settings
    compare and save as what they are.
    """
    for field in dataclasses.fields(record):
        value, allowed = _numbers(getattr(record, field.name)), choices(field)
        object.__setattr__(record, field.name, value)
        if field.name in skip or (value is None and optional(field)):
            continue
        if allowed and value not in allowed:
            raise UserError(f"{field.name} must be one of {allowed}, got {value!r}")
        kind = get_args(field.type)[0] if optional(field) else field.type
        if kind in _KINDS and not _KINDS[kind](value):
            noun = _NOUNS[kind] + (" or None" if optional(field) else "")
            raise UserError(f"{field.name} must be {noun}, got {value!r}")
        each = get_args(kind)[0] if get_origin(kind) is tuple else None
        if each in _KINDS and not (
            isinstance(value, tuple | list) and all(map(_KINDS[each], value))
        ):
            raise UserError(f"each of {field.name} must be {_NOUNS[each]}, got {value!r}")


def _numbers(value: Any) -> Any:
    return tuple(map(number, value)) if type(value) is tuple else number(value)


def _is_count(value: Any) -> bool:
    """Return whether a value is an integer that fits into an int32, like the step counter."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value < 2**31


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number that is finite as float32."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    return abs(float(value)) <= float(np.finfo(np.float32).max)


_KINDS = {int: _is_count, float: _is_finite, bool: lambda v: isinstance(v, bool)}
_NOUNS = {int: "a whole number below 2**31", float: "a finite number", bool: "True or False"}


def check_whole(**values: Any) -> None:
    """Raise UserError if a value is not a whole number or is below 1."""
    for name, value in values.items():
        if not _is_count(value):
            raise UserError(f"{name} must be {_NOUNS[int]}, got {value!r}")
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def check_takes(name: str, function: Callable, *arguments: str) -> None:
    """Raise UserError if a function cannot be called with these positional arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        given = ", ".join(arguments)
        raise UserError(f"{name} must be a function of ({given}): {error}") from error
    except ValueError:
        return  # compiled functions may have no signature


def check_at_least(record: Any, least: float, *names: str) -> None:
    """Raise UserError if a field is below its minimum; None passes.

    Call `check_values` first, since only numbers can be compared.
    """
    for name in names:
        value = getattr(record, name)
        if value is not None and not value >= least:
            raise UserError(f"{name} must be at least {least}, got {value}")


def check_names(given: Iterable[str], known: Collection[str], problem: str) -> None:
    """Raise UserError for the first unknown name, with the known one that is most like it.

    Args:
      given: The names.
      known: The names that there are.
      problem: Beginning of the message, such as `"Settings has no field"`.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(known)}"
            raise UserError(f"{problem} {name!r}; {hint}")
