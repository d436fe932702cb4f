"""Settings that come out right on every seed, without knowing the number of mechanisms.

The paper's settings are in configs/, an experiment each; these are one for all networks: losses
relative to those of no component, a learning rate relative to the weights, rounds of refinement in
the first part of the training, and a simplicity that fades in the rest, so that components get
their full length. What is left to choose is C (twice the number of mechanisms that one expects) and
k.
"""

from apd_jax.objective.objective import Coefficients, Objective
from apd_jax.training.config import Settings
from apd_jax.training.refine.rules import Rules
from apd_jax.training.schedules import Schedules

SUFFIX = "-robust"  # of the variant of a config that takes these settings

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
