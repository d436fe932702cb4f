"""Settings for reliable training across seeds, without knowing the number of mechanisms.

The paper's settings, one per experiment, are in configs/. These are the same for every network:
losses relative to those without components, a learning rate relative to the weights, rounds of
refinement in the first part of the training, and a simplicity coefficient that falls to zero in the
rest, so that components reach their full norm. What is left to choose is k, and C (about twice the
expected number of mechanisms).
"""

from apd_jax.objective.objective import Coefficients, Objective
from apd_jax.training.config import Settings
from apd_jax.training.refine.rules import Rules
from apd_jax.training.schedules import Schedules

SUFFIX = "-robust"  # ends the name of the variant of a config with these settings

ROBUST = Settings(
    objective=Objective(Coefficients(faithfulness=1.0, minimality=1.0, simplicity=6.0)),
    steps=8000,
    batch_size=512,
    learning_rate=0.1,
    warmup_fraction=0.05,
    relative_rate=True,
    relative_losses=True,
    schedules=Schedules(simplicity="0:1 0.6:1 1:0"),
    refine=Rules(every=0.1, until=0.6),
)
