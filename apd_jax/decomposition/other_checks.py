"""Checks of the other data of a targeted decomposition, before any training."""

from apd_jax.data import Beside, Source
from apd_jax.decomposition.checks import check_outputs, without_the_rest
from apd_jax.errors import UserError, about
from apd_jax.sites import Target
from apd_jax.sites.program import trace
from apd_jax.training.config import Settings


def check_other(
    target: Target, source: Source, settings: Settings, seed: int, restarts: int
) -> None:
    """Raise UserError unless the other data of a targeted decomposition fit its settings."""
    given = isinstance(source, Beside)
    if given != settings.objective.targeted:
        raise UserError(
            "a targeted decomposition needs other= and a coefficient other above 0, got "
            f"{'other=' if given else 'no other='} and {settings.objective.coefficients.other}"
        )
    if not isinstance(source, Beside):
        return
    if restarts > 1:
        raise UserError(
            f"other= needs restarts=1, got {restarts}: restarts are compared by their loss on data "
            "alone; call decompose once for each seed"
        )
    with about("other"):
        x = source.other_examples(seed, 3)
        target.at(x)
        trace(target.apply_fn, target.params, x)


def check_other_outputs(target: Target, source: Source, settings: Settings, seed: int) -> None:
    """Raise UserError for outputs on the other data that no loss can compare.

    The network itself has been checked.
    """
    if not isinstance(source, Beside):
        return
    objective = settings.objective
    with about("other"):
        x = source.other_examples(seed, 3)
        if objective.counted(x) is not None:
            target = without_the_rest(target, x, objective)
        check_outputs(target, x, objective)
