"""Toy models of superposition (section 3.1 of the paper).

    apd-jax --config=tms:5-2
    apd-jax --config=tms:40-10 --config.seeds=3
    apd-jax --config=tms:40-10-robust --config.seeds=16

Variants: 5-2 and 40-10 (number of features - hidden width; the paper's), 5-2-id and 40-10-id (with
a fixed identity between encoder and decoder; SPD's), all with the paper's settings. The suffix
`-robust` selects the settings of apd_jax/training/presets.py with half the steps; only C and k
differ between networks. With an identity, initialisation from the weights and a loss on hidden
activations replace the rounds of refinement.

The paper's 5-2 has MMCS 0.998 and ML2R 0.893, its 40-10 has MMCS 0.996 and ML2R 0.935.
"""

from apd_jax import config_fields
from apd_jax.run.config import base_config
from apd_jax.training.presets import ROBUST, SUFFIX


def _five_features(config):
    config.num_components, config.rank, config.topk = 5, 3, 0.211
    config.coefficients.update(faithfulness=1.0, minimality=1.0, simplicity=0.7)
    config.schatten_p = 1.0
    config.attribution_source = "components"
    config.learning_rate, config.schedule = 3e-2, "constant"
    config.init_instances = 12
    config.target.update(num_features=5, num_hidden=2, steps=5000, batch_size=1024)


def _forty_features(config):
    config.num_components, config.rank, config.topk = 50, 11, 1.0
    config.coefficients.update(faithfulness=1.0, minimality=10.0, simplicity=20.0)
    config.schatten_p = 0.9
    config.learning_rate, config.schedule = 1e-3, "cosine"
    config.init_instances = 3
    config.target.update(num_features=40, num_hidden=10, steps=2000, batch_size=2048)


_VARIANTS = {
    "5-2": (_five_features, 0),
    "40-10": (_forty_features, 0),
    "5-2-id": (_five_features, 1),
    "40-10-id": (_forty_features, 1),
}


def _robust(config):
    config.update(config_fields.to_mapping(ROBUST, flags_only=True))
    wide = config.target.num_features == 40
    config.num_components, config.topk = (80, 1.0) if wide else (10, 0.211)
    config.rank, config.steps = 4, 4000
    if config.target.hidden_layers:
        # The pieces of the identity, one per feature, sum to more than the identity, so spare
        # components hold the difference. Rounds of refinement would merge these. Only the hidden
        # activations determine how a feature's length is divided between W and its piece.
        config.start, config.steps, config.refine.every = "covering", 2000, 0.0
        config.coefficients.activation, config.hidden_uses = 10.0, "first"


def get_config(variant: str = "5-2"):
    config = base_config("tms", variant)
    config.steps, config.batch_size, config.warmup_fraction = 20_000, 2048, 0.05
    config.checkpoint_every = 5000  # steps are short: saving more often would slow down the run
    config.target.update(probability=0.05, learning_rate=5e-3, schedule="linear")
    set_sizes, config.target.hidden_layers = _VARIANTS[variant.removesuffix(SUFFIX)]
    set_sizes(config)
    if variant.endswith(SUFFIX):
        _robust(config)
    return config
