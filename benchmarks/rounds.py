"""CPU time to compile a round of refinement of a transformer, by its number of layers.

python -m benchmarks.rounds 1 4
"""

import sys
import time

import flax.linen as nn
import jax

import apd_jax
from apd_jax.objective.coefficients import Coefficients
from apd_jax.objective.objective import Objective
from apd_jax.training.refine import rounds
from apd_jax.training.refine.rules import Rules

EXAMPLES, BLOCK, POSITIONS, WIDTH = 64, 32, 16, 64


class Transformer(nn.Module):
    """Blocks of attention and an MLP, and ten outputs from the mean over positions."""

    layers: int

    @nn.compact
    def __call__(self, x):
        """Outputs [B, 10] for inputs [B, T, d]."""
        for _ in range(self.layers):
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(axis=1))


def measure(layers: int) -> str:
    """Compile the moves of a round, without the cache of compiled programs."""
    module = Transformer(layers)
    x = jax.random.normal(jax.random.key(0), (EXAMPLES, POSITIONS, WIDTH))
    target = apd_jax.Target.from_flax(module, module.init(jax.random.key(1), x)).at(x)
    components = apd_jax.init_components(jax.random.key(2), target, num_components=32, rank=2)
    objective = Objective(Coefficients(faithfulness=1, minimality=1, simplicity=1), topk=4.0)

    @jax.jit
    def moves(components):
        rules, key = Rules(every=10), jax.random.key(3)
        return rounds.move(objective, rules, target, components, x, key, block_size=BLOCK)

    start = time.process_time()
    lowered = moves.lower(components)
    middle = time.process_time()
    program = lowered.compile()
    end = time.process_time()
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    return (
        f"{layers} layers, {len(components)} sites: traced in {middle - start:.1f} s, compiled in "
        f"{end - middle:.1f} s (CPU time), {memory:.0f} MB of temporary memory"
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    for number in sys.argv[1:]:
        print(measure(int(number)), flush=True)
