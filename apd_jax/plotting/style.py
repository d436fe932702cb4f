"""The look that all figures share: colours by role, sizes, fonts, PNG output.

Colours are Okabe and Ito's palette, which survives the common kinds of colour blindness. Figures
are built without pyplot, so that no state is left behind and no display is needed.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apd_jax.errors import UserError
from apd_jax.runtime.preemption import stop_if_asked

WIDTH = 10.0
PAGE = 16.0  # largest height of a figure; a longer one is cut, and its caption notes this
DPI = 200
_SOFTWARE = "apd_jax"  # written to every file, to recognise our own figures

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#7F7F7F"
INK, FAINT, PALE = "#222222", "#C8C8C8", "#F4F4F4"

SIGNED = colors.LinearSegmentedColormap.from_list("signed", [VERMILION, "white", BLUE])

ROLE_COLORS = {
    "target": BLUE,
    "topk": ORANGE,
    "scrubbed": GREEN,
    "antiscrubbed": PURPLE,
    "baseline": GREY,
    "label": INK,
}
LAYER_COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
FEW_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, "#5D3A9B", "#8C6D1F")

_RC: Any = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.labelsize": 9,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "axes.formatter.use_mathtext": True,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(make: Callable[P, R]) -> Callable[P, R]:
    """Make a function that draws or writes use the shared style, not the caller's settings."""

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)
            return make(*args, **kwargs)

    return wrapper


def make_figures(makers: Mapping[str, Callable[[], Figure]], only: str | None) -> dict[str, Figure]:
    """Make the figures of a table by name, or only the one that `only` names.

    Raises:
      UserError: `only` is not in the table.
    """
    if only is not None and only not in makers:
        raise UserError(f"there is no figure {only!r}; there are {sorted(makers)}")
    figures = {}
    for name in makers if only is None else [only]:
        stop_if_asked()
        figures[name] = makers[name]()
    return figures


def new_figure(height: float, *, width: float = WIDTH, constrained: bool = True) -> Figure:
    """Make an empty figure of at most a page; sizes in inches, with or without automatic layout."""
    size = width, min(height, PAGE)
    return Figure(figsize=size, layout="constrained" if constrained else None)


@styled
def to_png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Render a figure as PNG on white ground, whatever the caller's settings."""
    stop_if_asked()
    buffer = io.BytesIO()
    mark = {"Software": _SOFTWARE}
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata=mark)
    return buffer.getvalue()


def is_ours(png: bytes) -> bool:
    """Whether `to_png` made these bytes."""
    return f"tEXtSoftware\0{_SOFTWARE}".encode() in png[:1000]


def feature_colors(count: int) -> np.ndarray:
    """[count, 4] RGBA: distinct colours for a few features, a gradient for many."""
    if count <= len(FEW_COLORS):
        return colors.to_rgba_array(FEW_COLORS[:count])
    # The bright end of viridis can't be seen on white.
    return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, count))


def layer_colors(layers: int) -> list[str]:
    """One colour for each layer; a single layer is dark grey."""
    if layers == 1:
        return ["#444444"]
    return [LAYER_COLORS[i % len(LAYER_COLORS)] for i in range(layers)]


def bare(axes: Axes) -> None:
    """Remove ticks, labels and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def label(name: str, width: int, lines: int = 3) -> str:
    """Write a name as plain text in lines of at most `width` characters, broken after . or /.

    Of a longer name the middle is left out.
    """
    rows = [""]
    for part in re.split(r"(?<=[./])", name):
        for piece in (part[i : i + width] for i in range(0, len(part), width)):
            if len(rows[-1]) + len(piece) > width:
                rows.append("")
            rows[-1] += piece
    if len(rows) > lines:
        rows = [rows[0], f"…{rows[1 - lines][1:]}", *rows[len(rows) - lines + 2 :]]
    return "\n".join(rows).replace("$", r"\$")  # two of them would enclose a formula


def scientific(value: float) -> str:
    """Write a number as mathtext with two significant digits: 2.6e-4 as 2.6 × 10⁻⁴."""
    if not np.isfinite(value) or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"{mantissa}$\,\times\,$10$^{{{int(exponent)}}}$"
