"""Decompose an Equinox network: which weights serve which of five inputs?

    python examples/equinox_mlp.py

The network computes the absolute values of five inputs. Each sign of each input has a component of
its own, ten in all (attributions .68 to .97, all others at most .27): the neurons that are active
for positive inputs differ from those that are active for negative ones. Two of the twelve
components are not needed.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import apd_jax

STEPS = 20 if "--quick" in sys.argv else 4000


def sample(key, n):
    """Return five inputs, each nonzero in a fifth of the examples, [n, 5]."""
    value, active = jax.random.split(key)
    return jax.random.uniform(value, (n, 5), minval=-1) * jax.random.bernoulli(active, 0.2, (n, 5))


@eqx.filter_jit
def improve(model, state, key):
    """Take a training step towards the absolute value of every input."""

    def loss(model, x):
        return jnp.mean((jax.vmap(model)(x) - jnp.abs(x)) ** 2)

    gradient = eqx.filter_grad(loss)(model, sample(key, 256))
    updates, state = optimizer.update(gradient, state)
    return eqx.apply_updates(model, updates), state


model = eqx.nn.MLP(in_size=5, out_size=5, width_size=20, depth=1, key=jax.random.key(0))
optimizer = optax.adam(1e-2)
state = optimizer.init(eqx.filter(model, eqx.is_array))
for step in range(STEPS):
    model, state = improve(model, state, jax.random.key(step))

# The decomposition.
target = apd_jax.Target.from_equinox(model, inputs=sample(jax.random.key(0), 2))
print(target.sites)
decomposition = apd_jax.decompose(target, sample, num_components=12, topk=0.7, rank=4, steps=STEPS)
inputs = jnp.concatenate([jnp.eye(5), -jnp.eye(5)])  # one nonzero input, positive and negative
attributions = decomposition.attributions(inputs)
print(np.asarray(attributions).round(2))
print("component of each input:", attributions.argmax(axis=1).reshape(2, 5))
