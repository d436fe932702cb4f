"""Linear maps y = x W: shows the effect of a loss term.

    apd-jax --config=linear_map:identity-sparse
    apd-jax --config=linear_map:orthogonal-gaussian

Variants: W is the identity, a random orthogonal matrix or a random low-rank matrix; x is sparse or
Gaussian. A run takes a minute.
"""

from apd_jax.run.config import base_config


def get_config(variant: str = "identity-sparse"):
    config = base_config("linear_map", variant)
    kind, _, config.target.sample = variant.rpartition("-")
    config.target.kind = kind
    config.num_components, config.topk = 10, 0.5
    config.coefficients.update(faithfulness=1.0, minimality=1.0, simplicity=0.1)
    config.schatten_p = 1.0
    config.steps, config.batch_size, config.learning_rate = 3000, 1024, 1e-2
    config.checkpoint_every = 3000
    if config.target.sample == "gaussian":
        config.topk = 10.0  # every input is active
    else:
        config.start = "partitioned"  # with random initialisation, two rows may share a component
    return config
