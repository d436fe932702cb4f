"""Checks of values and names; each raises UserError with the value and what was expected."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any, get_args, get_origin

from apd_jax.config_fields.declaration import choices, optional
from apd_jax.config_fields.values import KINDS, NOUNS, as_float, number, sequence
from apd_jax.errors import UserError


def check_values(record: Any, *, skip: tuple[str, ...] = ()) -> None:
    """Raise UserError if a value is not of its field's kind: a choice, a finite number, ...

    NumPy scalars, arrays [] and fractions become Python numbers first, and arrays [n] and lists
    tuples, in the record itself, so that settings compare and save as what they are.
    """
    for field in dataclasses.fields(record):
        kind = get_args(field.type)[0] if optional(field) else field.type
        each = get_args(kind)[0] if get_origin(kind) is tuple else None
        value, allowed = getattr(record, field.name), choices(field)
        value = number(value) if each is None else sequence(value)
        object.__setattr__(record, field.name, value)
        if field.name in skip or (value is None and optional(field)):
            continue
        if allowed and not (isinstance(value, Hashable) and value in allowed):
            raise UserError(f"{field.name} must be one of {allowed}, got {value!r}")
        if kind in KINDS and not KINDS[kind](value):
            noun = NOUNS[kind] + (" or None" if optional(field) else "")
            raise UserError(f"{field.name} must be {noun}, got {value!r}")
        if each in KINDS and not (isinstance(value, tuple) and all(map(KINDS[each], value))):
            raise UserError(f"each of {field.name} must be {NOUNS[each]}, got {value!r}")
        if kind is float or each is float:
            value = tuple(map(as_float, value)) if each is float else as_float(value)
            object.__setattr__(record, field.name, value)


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
      given: the names.
      known: the names that there are.
      problem: beginning of the message, such as `"Settings has no field"`.
    """
    for name in given:
        if not isinstance(name, str):
            raise UserError(f"{problem} {name!r}: names are text; there are {sorted(known)}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {sorted(known)}"
            raise UserError(f"{problem} {name!r}; {hint}")
