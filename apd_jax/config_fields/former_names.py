"""Names that earlier versions wrote into saved configs, and what they are called now."""

from collections.abc import Mapping
from typing import Any

# Values of options, by field.
_VALUES = {"start": {"parted": "partitioned"}}
# Loss terms; they name fields of these parts of a config.
_TERMS = {"stochastic": "partial"}
_PARTS_OF_TERMS = ("coefficients", "schedules")
_SEVERAL = ("evidence_steps",)  # held one number


def present(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, or a part of one, with present names and values.

    The `stochastic` loss, of random halves of the inactive components, is now a case of `partial`.

    Args:
      config: nested mapping of plain values, as a config file has them.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in _PARTS_OF_TERMS and isinstance(value, Mapping):
            found[name] = {_TERMS.get(term, term): inner for term, inner in value.items()}
        elif isinstance(value, Mapping):
            found[name] = present(value)
        elif name in _SEVERAL and isinstance(value, int):
            found[name] = [value]
        else:
            known = _VALUES.get(name, {})
            found[name] = known.get(value, value) if isinstance(value, str) else value
    coefficients = config.get("coefficients")
    if isinstance(coefficients, Mapping) and coefficients.get("stochastic"):
        found.setdefault("partial_masks", "halves")
    return found
