"""Hyperparameters: each is a field of a frozen dataclass, with a default and a description.

Such a dataclass is called a *record*. A field of a record may hold another record, a *part*. Flags,
keywords and saved files represent a record as a mapping from names to plain values. A part is a
nested mapping, unless it is `flat`: then its fields are merged into those of the whole record.
"""

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

from apd_jax.config_numbers import KINDS, NOUNS, as_float, number, sequence
from apd_jax.errors import UserError
from apd_jax.former_names import present

Record = TypeVar("Record")


def setting(
    default: Any,
    sentence: str,
    *,
    flag: bool = True,
    flat: bool = False,
    free: bool = False,
    traced: bool = False,
) -> Any:
    """Declare a hyperparameter, or a part of the record.

    Args:
      default: Default value.
      sentence: Description of the hyperparameter and its allowed values.
      flag: Whether it is a flag of the command line; False if the study determines it.
      flat: For a part: whether its fields are merged into those of the whole record.
      free: Whether it may differ between the commands of one run, since it does not change results.
      traced: Whether it is a number that compiled programs can take as an argument, so that runs
        with different values share one program.
    """
    metadata = {"sentence": sentence, "flag": flag, "flat": flat, "free": free, "traced": traced}
    return dataclasses.field(default=default, metadata=metadata)


def is_record(value: Any) -> bool:
    """Return whether a value is a record (an instance, not a type)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def choices(field: dataclasses.Field) -> tuple[Any, ...]:
    """Return the allowed values of a field of a `Literal` type; empty for other types."""
    options = (field.type, *get_args(field.type))  # for `Literal[...] | None`, the first
    return next((get_args(option) for option in options if get_origin(option) is Literal), ())


def marked(field: dataclasses.Field, mark: str) -> bool:
    """Return a mark of `setting`; a field declared without `setting` is an ordinary flag."""
    return field.metadata.get(mark, mark == "flag")


def optional(field: dataclasses.Field) -> bool:
    """Return whether a field may be None."""
    return type(None) in get_args(field.type)


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


def to_mapping(record: Any, *, flags_only: bool = False) -> dict[str, Any]:
    """Convert a record to a mapping of plain values.

    Args:
      record: The record to convert.
      flags_only: Whether to omit fields that are not flags.
    """
    mapping: dict[str, Any] = {}
    for field in flags(record) if flags_only else _fields(record):
        value = getattr(record, field.name)
        if not is_record(value):
            mapping[field.name] = value
        elif marked(field, "flat"):
            mapping |= to_mapping(value, flags_only=flags_only)
        else:
            mapping[field.name] = to_mapping(value, flags_only=flags_only)
    return mapping


def from_mapping(record: Record, mapping: Mapping[str, Any]) -> Record:
    """Return a record with the values of a mapping, and its own values for the other fields.

    Args:
      record: The record with the default values.
      mapping: Values as returned by `to_mapping`, or some of them, under their present names or
        those of an earlier version. A part of the record may be given as a record. Lists (from
        JSON) become tuples.

    Raises:
      UserError: A name is unknown, or the record refuses a value.
    """
    mapping = present(mapping)
    check_names(mapping, _names(record), f"{type(record).__name__} has no field")
    changes = {}
    for field in _fields(record):
        old = getattr(record, field.name)
        if is_record(old) and marked(field, "flat") and field.name not in mapping:
            inner = {name: mapping[name] for name in _names(old) if name in mapping}
            changes[field.name] = from_mapping(old, inner)
        elif field.name in mapping:
            changes[field.name] = _replaced(field.name, old, mapping[field.name])
    return dataclasses.replace(cast(Any, record), **changes)


def with_unchecked(record: Record, values: Mapping[str, Any]) -> Record:
    """Return a record with other values, which are not checked: traced arrays are no numbers.

    Args:
      record: The record.
      values: Values by dotted name, as `leaves` yields them.
    """
    changes = {}
    for field in _fields(record):
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


def plain(value: Any) -> Any:
    """Convert a value of a mapping for JSON; a function is represented by its name."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__name__)}"
    return value


def flags(record: Any) -> list[dataclasses.Field]:
    """Return the fields that are flags of the command line."""
    return [field for field in _fields(record) if marked(field, "flag")]


def leaves(record: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield (dotted name, field, value) of every flag of a record that is not a part."""
    for field in flags(record):
        value = getattr(record, field.name)
        if is_record(value):
            inside = prefix if marked(field, "flat") else f"{prefix}{field.name}."
            yield from leaves(value, inside)
        else:
            yield f"{prefix}{field.name}", field, value


def sentences(record: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, description) of every flag of a record."""
    for name, field, _ in leaves(record):
        yield name, field.metadata.get("sentence", "")


def free_names(record: Any) -> tuple[str, ...]:
    """Return the names of the fields that may differ between the commands of one run."""
    return tuple(field.name for field in _fields(record) if marked(field, "free"))


def _fields(record: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(record) if field.init]


def _names(record: Any) -> set[str]:
    """Return the names that are allowed in a mapping of a record."""
    names = {field.name for field in _fields(record)}
    parts = [getattr(record, f.name) for f in _fields(record) if marked(f, "flat")]
    return names.union(*(_names(part) for part in parts))


def _replaced(name: str, old: Any, new: Any) -> Any:
    """Return the new value of a field that is in a mapping."""
    if is_record(old) and isinstance(new, Mapping):
        try:
            return from_mapping(old, new)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    if is_record(old) and not isinstance(new, type(old)):
        kind = type(old).__name__
        raise UserError(f"{name} must be a {kind} or a mapping of its fields, got {new!r}")
    return _tuples(new)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if type(value) in (list, tuple) else value
