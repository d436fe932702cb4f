"""Residual MLPs that compute more functions than they have neurons (sections 3.2 and 3.3).

    python -m apd_jax.main --config=configs/resid_mlp.py:1
    python -m apd_jax.main --config=configs/resid_mlp.py:2
    python -m apd_jax.main --config=configs/resid_mlp.py:1-robust

Variants: 1 and 2 layers (the paper's) and 3 layers (SPD's; the settings of 2 layers); each with
`-robust` behind it with those of apd_jax/robust.py: rounds of refinement, components of rank 4, as
many active ones as there are active features, and fewer steps. Paper, MSE to the target
for top-k / scrubbed / anti-scrubbed: 1.2e-4 / 2.65e-4 / 1.36e-3 with 1 layer,
0.9e-4 / 4.0e-4 / 1.55e-3 with 2. The paper trains with 1 layer for 40k steps, its released config
for 10k.
"""

from apd_jax import fields
from apd_jax.errors import UserError
from apd_jax.robust import ROBUST
from apd_jax.run.config import base_config

_NEURONS = {"1": (50,), "2": (25, 25), "3": (17, 17, 17)}


def _robust(config):
    config.update(fields.to_mapping(ROBUST, flags_only=True))
    config.num_components, config.topk, config.rank = 200, 1.0, 4
    config.unit_norm, config.init_scale = False, 1.0
    config.batch_size, config.refine.share = 256, True
    config.learning_rate = 0.05  # at 0.1 some runs diverge
    config.coefficients.update(activation=1.0, stochastic=0.5)
    # Components find their features first, then learn to do without halves of the others.
    config.schedules.stochastic = "0:0 0.45:0 0.65:1"
    if config.variant != "1":
        config.steps, config.refine.every = 4000, 400
        config.coefficients.stochastic = 0.12


def get_config(variant: str = "1"):
    variant, dash, rest = variant.partition("-robust")
    if variant not in _NEURONS or rest:
        raise UserError(
            f"unknown variant {variant + dash + rest!r}; configs/resid_mlp.py has "
            f"{sorted(_NEURONS)}, each also with -robust"
        )
    config = base_config("resid_mlp", variant)
    config.steps, config.batch_size, config.topk = 10_000, 256, 1.28
    config.learning_rate, config.schedule, config.warmup_fraction = 1e-3, "cosine", 0.01
    config.schatten_p, config.init_scale = 0.9, 2.0
    if variant == "1":
        config.num_components, config.unit_norm = 130, True
        config.coefficients.update(
            faithfulness=1.0, minimality=1.0, simplicity=10.0, activation=1.0
        )
    else:
        config.num_components, config.unit_norm = 200, False
        config.coefficients.update(minimality=2.0, simplicity=7.0, activation=1.0)
    config.chunk_steps, config.evaluation_samples = 50, 50_000
    config.target.update(num_features=100, d_resid=1000, neurons=_NEURONS[variant])
    config.target.update(probability=0.01, steps=10_000, batch_size=2048, learning_rate=3e-3)
    if dash:
        _robust(config)
    return config
