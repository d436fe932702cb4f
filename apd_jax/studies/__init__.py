"""The paper's experiments: how a config becomes a task, and how its results are judged.

Every folder here has a `study` that offers `make_task(config)`, `evaluate(task, decomposition,
attributions, key, samples)`, `draw(numbers, arrays)`, `represented(arrays)`, `views(target)`,
`published(variant)`, `thresholds(variant)`, `CAPTIONS` and `MAIN_FIGURE`.
"""

from apd_jax.errors import UserError
from apd_jax.studies import drawing  # noqa: F401, before anything else imports matplotlib
from apd_jax.studies.resid_mlp import study as resid_mlp_study
from apd_jax.studies.tms import study as tms_study

STUDIES = {"tms": tms_study, "resid_mlp": resid_mlp_study}


def find(name: str):
    """The study called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in STUDIES:
        raise UserError(f"config.name must be one of {sorted(STUDIES)}, got {name!r}")
    return STUDIES[name]
