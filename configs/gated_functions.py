"""Hand-coded gated functions: each weight has a known function.

    apd-jax --config=gated_functions:small --config.seeds=16
    apd-jax --config=gated_functions:paper

They are from the paper's appendix. Variants: paper (4 functions of 10 neurons in 2 layers, with the
paper's settings: hours on a CPU), small (2 functions of 3 neurons in 1 layer), robust (the paper's
network, with settings that solve it for nearly every seed). Every seed has a network of its own.
"""

from apd_jax.run.config import base_config


def _paper(config):
    config.num_components, config.topk = 4, 0.2217
    config.coefficients.update(faithfulness=0.1, minimality=5.0, simplicity=5.0)
    config.steps, config.batch_size = 200_000, 10_000
    config.learning_rate, config.warmup_fraction = 3e-3, 0.004


def _robust(config):
    config.num_components, config.topk = 4, 0.2217
    config.start = "partitioned"
    config.attribution = "activation"
    config.coefficients.update(faithfulness=0.1, minimality=5.0, simplicity=5.0)
    config.steps, config.batch_size = 3000, 1024
    config.learning_rate, config.warmup_fraction = 3e-3, 0.05


def _small(config):
    _robust(config)
    config.num_components, config.topk = 2, 0.11
    config.steps, config.batch_size = 2000, 512
    config.target.update(num_functions=2, neurons=3, num_layers=1)


_VARIANTS = {"paper": _paper, "small": _small, "robust": _robust}


def get_config(variant: str = "paper"):
    config = base_config("gated_functions", variant)
    config.schatten_p, config.schedule = 1.0, "cosine"
    config.checkpoint_every = 5000  # steps are short: saving more often would slow down the run
    _VARIANTS[variant](config)
    return config
