"""Byte-level language model, decomposed at every position.

    apd-jax --config=language_model:2

Variants: 1, 2 and 4 layers. The text is the source of Python's standard library, as this machine
has it, a tenth of its files held out. The settings are those that `decompose` chooses for logits at
every position (apd_jax/training/presets.py), with 128 components of rank 2, 7 of them active.
"""

from apd_jax import config_fields
from apd_jax.run.config import base_config
from apd_jax.training.presets import LOGITS


def get_config(variant: str = "2"):
    config = base_config("language_model", variant)
    config.update(config_fields.to_mapping(LOGITS, flags_only=True))
    config.num_components, config.rank, config.topk = 128, 2, 7.0
    config.target.layers = int(variant)
    config.evaluation_samples, config.evidence_samples = 256, 256  # 16,384 bytes
    config.chunk_steps, config.checkpoint_every = 20, 200
    return config
