"""The experiments, a folder each, and what they share. `Study` says what a folder offers."""

from apd_jax.errors import UserError
from apd_jax.studies import drawing  # noqa: F401, before anything else imports matplotlib
from apd_jax.studies.gated_functions.study import GatedFunctionsStudy
from apd_jax.studies.linear_map.study import LinearMapStudy
from apd_jax.studies.resid_mlp.study import ResidualMLPStudy
from apd_jax.studies.study import Study
from apd_jax.studies.tms.study import TMSStudy

STUDIES: dict[str, Study] = {
    "tms": TMSStudy(),
    "resid_mlp": ResidualMLPStudy(),
    "gated_functions": GatedFunctionsStudy(),
    "linear_map": LinearMapStudy(),
}


def find(name: str) -> Study:
    """The study called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in STUDIES:
        raise UserError(f"config.name must be one of {sorted(STUDIES)}, got {name!r}")
    return STUDIES[name]
