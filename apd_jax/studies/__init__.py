"""The paper's experiments: how a config becomes a task, and how its results are judged.

Every module here offers `make_task(config)`, `evaluate(task, decomposition, attributions, key,
samples)`, `draw(numbers, arrays)`, `represented(arrays)`, `views(target)`, `published(variant)`,
`thresholds(variant)`, `CAPTIONS` and `MAIN_FIGURE`.
"""

from apd_jax.studies import resid_mlp, tms

STUDIES = {"tms": tms, "resid_mlp": resid_mlp}


def find(name: str):
    """The study called `name`.

    Raises:
      ValueError: there is none.
    """
    if name not in STUDIES:
        raise ValueError(f"config.name must be one of {sorted(STUDIES)}, got {name!r}")
    return STUDIES[name]
