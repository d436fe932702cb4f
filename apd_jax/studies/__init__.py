"""The experiments, one folder each, and their shared code. `Study` defines the interface."""

import importlib
from typing import TYPE_CHECKING

from apd_jax.errors import UserError

if TYPE_CHECKING:
    from apd_jax.studies.study import Study

# The folders and their variants. Each folder has a study.py that defines `STUDY`. Variants stand
# here, so that the command line can list them without importing every study.
VARIANTS: dict[str, tuple[str, ...]] = {
    "gated_functions": ("paper", "small", "robust"),
    "language_model": ("1", "2", "4"),
    "linear_map": (
        "identity-sparse",
        "identity-gaussian",
        "orthogonal-sparse",
        "orthogonal-gaussian",
        "low-rank-sparse",
        "low-rank-gaussian",
    ),
    "resid_mlp": ("1", "2", "3", "1-robust", "2-robust", "3-robust"),
    "tms": (
        "5-2",
        "40-10",
        "5-2-id",
        "40-10-id",
        "5-2-robust",
        "40-10-robust",
        "5-2-id-robust",
        "40-10-id-robust",
    ),
}


def find(name: str) -> "Study":
    """The study called `name`.

    Raises:
      UserError: there is no such study.
    """
    if name not in VARIANTS:
        raise UserError(f"config.name must be one of {sorted(VARIANTS)}, got {name!r}")
    importlib.import_module("apd_jax.plotting")  # before anything else imports matplotlib
    return importlib.import_module(f"{__name__}.{name}.study").STUDY


def find_all() -> dict[str, "Study"]:
    """Every study by its name."""
    return {name: find(name) for name in VARIANTS}
