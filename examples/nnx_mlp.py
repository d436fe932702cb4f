"""Decompose a Flax NNX network: which weights serve which of five inputs?

    python examples/nnx_mlp.py

The network computes the squares of five inputs. Each sign of each input has a component of its own,
except for input 0, whose signs share component 6 (attributions .99 to 1.13, all others at most
.20). Two inputs are split if negative: input 1 between components 3 (.61) and 11 (.54), and input 2
between 9 (.68) and 0 (.50).
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import apd_jax

STEPS = 20 if "--quick" in sys.argv else 4000


class Network(nnx.Module):
    """An MLP with two layers."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(5, 20, rngs=rngs)
        self.out = nnx.Linear(20, 5, rngs=rngs)

    def __call__(self, x):
        """Return outputs [B, 5]."""
        return self.out(nnx.relu(self.hidden(x)))


def sample(key, n):
    """Return five inputs, each nonzero in a fifth of the examples, [n, 5]."""
    value, active = jax.random.split(key)
    return jax.random.uniform(value, (n, 5), minval=-1) * jax.random.bernoulli(active, 0.2, (n, 5))


@nnx.jit
def improve(model, optimizer, key):
    """Take a training step towards the square of every input."""
    x = sample(key, 256)
    gradient = nnx.grad(lambda model: jnp.mean((model(x) - x**2) ** 2))(model)
    optimizer.update(model, gradient)


model = Network(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
for step in range(STEPS):
    improve(model, optimizer, jax.random.key(step))

# The decomposition.
target = apd_jax.Target.from_nnx(model, inputs=sample(jax.random.key(0), 2))
print(target.sites)
decomposition = apd_jax.decompose(target, sample, num_components=12, topk=0.7, rank=4, steps=STEPS)
inputs = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])  # one nonzero input, positive and negative
attributions = decomposition.attributions(inputs)
print(np.asarray(attributions).round(2))
print("component of each input:", attributions.argmax(axis=1).reshape(2, 5))
