"""Numbers of the report as text."""

import math
from typing import Any


def number(value: Any, digits: int = 4) -> str:
    """Write a value for a table: 4 significant digits, `1.20e−5` below 0.001, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if value == int(value) and size < 1e6 or isinstance(value, int):
        text = f"{int(value):,}"
    elif size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:,.{max(digits - 4, 0)}f}" if size >= 1000 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def threshold(value: Any) -> str:
    """Write a round number without zeros that would claim precision: `1e−5`, `0.99`."""
    text = number(value)
    mantissa, separator, exponent = text.partition("e")
    if not separator or "." not in mantissa:
        return text
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def against(value: Any, limit: Any) -> str:
    """Write a value with enough digits that it doesn't round onto a limit it differs from."""
    for digits in range(4, 17):
        text = number(value, digits)
        if value == limit or text != number(limit, digits):
            return text
    return repr(value)


def seconds(duration: float) -> str:
    """Write a duration: `8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if duration < 60:
        return f"{duration:.3g} s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
