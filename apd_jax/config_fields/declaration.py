"""The declaration of hyperparameters, and what is declared of a record."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin


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
      default: default value.
      sentence: description of the hyperparameter and its allowed values.
      flag: whether it is a flag of the command line; False if the study determines it.
      flat: for a part: whether its fields are merged into those of the whole record.
      free: whether it may differ between the commands of one run, since it does not change results.
      traced: whether it is a number that compiled programs can take as an argument, so that runs
        with different values share one program.
    """
    metadata = {"sentence": sentence, "flag": flag, "flat": flat, "free": free, "traced": traced}
    return dataclasses.field(default=default, metadata=metadata)


def is_record(value: Any) -> bool:
    """Whether a value is a record (an instance, not a type).

    A function that is a data class of the caller's is none: no `setting` declares its fields.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    return not callable(value) or any(field.metadata for field in dataclasses.fields(value))


def choices(field: dataclasses.Field) -> tuple[Any, ...]:
    """The allowed values of a field of a `Literal` type; empty for other types."""
    options = (field.type, *get_args(field.type))  # for `Literal[...] | None`, the first
    return next((get_args(option) for option in options if get_origin(option) is Literal), ())


def marked(field: dataclasses.Field, mark: str) -> bool:
    """A mark of `setting`; a field declared without `setting` is an ordinary flag."""
    return field.metadata.get(mark, mark == "flag")


def optional(field: dataclasses.Field) -> bool:
    """Whether a field may be None."""
    return type(None) in get_args(field.type)


def flags(record: Any) -> list[dataclasses.Field]:
    """The fields that are flags of the command line."""
    return [field for field in fields(record) if marked(field, "flag")]


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
    """The names of the fields that may differ between the commands of one run."""
    return tuple(field.name for field in fields(record) if marked(field, "free"))


def fields(record: Any) -> list[dataclasses.Field]:
    """The fields that are given when a record is made."""
    return [field for field in dataclasses.fields(record) if field.init]
