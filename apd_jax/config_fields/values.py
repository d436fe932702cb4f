"""Values of settings as Python's own numbers, and what is a count, a finite number, text.

Settings are compared, saved as JSON and closed over, so that they can't be arrays.
"""

import decimal
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from apd_jax.errors import UserError


def number(value: Any) -> Any:
    """A NumPy scalar, an array [] or a `Decimal` as a Python number; any other value as it is."""
    if isinstance(value, decimal.Decimal) and not value.is_snan():
        return float(value)
    is_scalar = isinstance(value, np.generic) or getattr(value, "shape", None) == ()
    try:
        return value.item() if is_scalar and hasattr(value, "item") else value
    except (NotImplementedError, TypeError, RuntimeError):
        # PRNG keys, and arrays without values, as inside jit or on torch's meta device, stay as
        # they are: checks of the field's kind refuse them and show what they are.
        return value


def sequence(value: Any) -> Any:
    """A sequence as a tuple of Python numbers; any other value as it is."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    return tuple(map(number, value)) if isinstance(value, tuple | list) else value


def as_float(value: Any) -> int | float:
    """A fraction, or a NumPy number that Python has no type for, as Python's float."""
    return value if isinstance(value, int | float) else float(value)


def _is_count(value: Any) -> bool:
    """Whether a value is an integer that fits into an int32, like the step counter."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value < 2**31


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that is finite as float32."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    largest = float(np.finfo(np.float32).max)
    return is_number and bool(-largest <= value <= largest)  # float(value) may overflow


KINDS = {
    int: _is_count,
    float: _is_finite,
    bool: lambda v: isinstance(v, bool),
    str: lambda v: isinstance(v, str),
}
NOUNS = {
    int: "a whole number below 2**31",
    float: "a finite number",
    bool: "True or False",
    str: "text",
}


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number as Python's; raises UserError for anything else, or one below the least."""
    found = number(value)
    if not _is_count(found):
        raise UserError(f"{name} must be {NOUNS[int]}, got {value!r:.200}")
    if found < least:
        raise UserError(f"{name} must be at least {least}, got {value!r}")
    return int(found)


def finite(name: str, value: Any) -> int | float:
    """A finite number as Python's; raises UserError for anything else."""
    found = number(value)
    if not _is_finite(found):
        raise UserError(f"{name} must be a finite number, and no traced one, got {value!r:.200}")
    return as_float(found)


def root_seed(value: Any) -> int:
    """A seed as Python's number; raises UserError unless it is a whole one in [0, 2**32)."""
    found = number(value)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**32:
        raise UserError(f"seed must be a whole number in [0, 2**32), got {value!r:.200}")
    return found


def names(name: str, value: Any) -> tuple[str, ...]:
    """One name or several, as a tuple; None stands for none.

    Raises:
      UserError: something else.
    """
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    found = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(each, str) for each in found):
        raise UserError(f"{name} must be a name, or several, got {value!r:.200}")
    return found
