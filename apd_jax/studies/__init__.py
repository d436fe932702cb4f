"""The experiments, one folder each, and their shared code. `Study` defines the interface."""

import importlib

from apd_jax import plotting  # noqa: F401, before anything else imports matplotlib
from apd_jax.errors import UserError
from apd_jax.studies.study import Study

# The folders. Each has a study.py that defines `STUDY`.
NAMES = (
    "gated_functions",
    "language_model",
    "linear_map",
    "resid_mlp",
    "tms",
)


def find(name: str) -> Study:
    """Return the study called `name`.

    Raises:
      UserError: There is no such study.
    """
    if name not in NAMES:
        raise UserError(f"config.name must be one of {sorted(NAMES)}, got {name!r}")
    return importlib.import_module(f"{__name__}.{name}.study").STUDY


def find_all() -> dict[str, Study]:
    """Return every study by its name."""
    return {name: find(name) for name in NAMES}
