"""The experiments, a folder each, and what they share. `Study` says what a folder offers."""

import importlib

from apd_jax import plotting  # noqa: F401, before anything else imports matplotlib
from apd_jax.errors import UserError
from apd_jax.studies.study import Study

# The folders; each has a study.py with its `STUDY`.
NAMES = (
    "gated_functions",
    "linear_map",
    "resid_mlp",
    "tms",
)


def find(name: str) -> Study:
    """The study called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(f"config.name must be one of {sorted(NAMES)}, got {name!r}")
    return importlib.import_module(f"{__name__}.{name}.study").STUDY


def find_all() -> dict[str, Study]:
    """Every study by its name."""
    return {name: find(name) for name in NAMES}
