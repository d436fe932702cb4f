"""Records as mappings from names to plain values, and back."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from apd_jax.config_fields.checks import check_names
from apd_jax.config_fields.declaration import fields, flags, is_record, marked
from apd_jax.config_fields.former_names import present
from apd_jax.errors import UserError, about

Record = TypeVar("Record")


def to_mapping(record: Any, *, flags_only: bool = False) -> dict[str, Any]:
    """Convert a record to a mapping of plain values.

    Args:
      record: the record to convert.
      flags_only: whether to omit fields that are not flags.
    """
    mapping: dict[str, Any] = {}
    for field in flags(record) if flags_only else fields(record):
        value = getattr(record, field.name)
        if not is_record(value):
            mapping[field.name] = value
        elif marked(field, "flat"):
            mapping |= to_mapping(value, flags_only=flags_only)
        else:
            mapping[field.name] = to_mapping(value, flags_only=flags_only)
    return mapping


def from_mapping(record: Record, mapping: Mapping[str, Any]) -> Record:
    """A record with the values of a mapping, and its own values for the other fields.

    Args:
      record: the record with the default values.
      mapping: values as returned by `to_mapping`, or some of them, under their present names or
        those of an earlier version. A part of the record may be given as a record. Lists (from
        JSON) become tuples.

    Raises:
      UserError: a name is unknown, or the record refuses a value.
    """
    mapping = present(mapping)
    check_names(mapping, _names(record), f"{type(record).__name__} has no field")
    changes = {}
    for field in fields(record):
        old = getattr(record, field.name)
        if is_record(old) and marked(field, "flat") and field.name not in mapping:
            inner = {name: mapping[name] for name in _names(old) if name in mapping}
            changes[field.name] = from_mapping(old, inner)
        elif field.name in mapping:
            changes[field.name] = _replaced(field.name, old, mapping[field.name])
    return dataclasses.replace(cast(Any, record), **changes)


def with_unchecked(record: Record, values: Mapping[str, Any]) -> Record:
    """A record with other values, which are not checked: traced arrays are no numbers.

    Args:
      record: the record.
      values: values by dotted name, as `leaves` yields them.
    """
    changes = {}
    for field in fields(record):
        old = getattr(record, field.name)
        if not is_record(old):
            if field.name in values:
                changes[field.name] = values[field.name]
            continue
        prefix = "" if marked(field, "flat") else f"{field.name}."
        inner = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
        new = with_unchecked(old, inner) if inner else old
        if new is not old:
            changes[field.name] = new
    if not changes:
        return record
    changed = copy.copy(record)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def check_keywords(function: Callable, record: Any, given: Mapping[str, Any]) -> None:
    """Raise UserError if a function that takes the fields of a record gets an unknown keyword."""
    own = [
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind != p.VAR_KEYWORD
    ]
    known = _names(record).union(own)
    check_names(present(given), known, f"{function.__name__} has no option")


def plain(value: Any) -> Any:
    """Convert a value of a mapping for JSON; a function is represented by its name."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__name__)}"
    return value


def _names(record: Any) -> set[str]:
    """The names that are allowed in a mapping of a record."""
    names = {field.name for field in fields(record)}
    parts = [getattr(record, f.name) for f in fields(record) if marked(f, "flat")]
    return names.union(*(_names(part) for part in parts))


def _replaced(name: str, old: Any, new: Any) -> Any:
    """The new value of a field that is in a mapping."""
    if is_record(old) and isinstance(new, Mapping):
        with about(name):
            return from_mapping(old, new)
    if is_record(old) and not isinstance(new, type(old)):
        kind, first = type(old).__name__, fields(old)[0].name
        raise UserError(
            f"{name} must be a {kind} or a mapping of its fields, such as "
            f"{ {first: getattr(old, first)} }, got {new!r}"
        )
    return _tuples(new)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value
