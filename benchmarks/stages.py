"""Time and count the work of each stage of a training step.

A step is a list of stages, which are functions from named values to the values that they compute.
Letters: S seeds side by side.
"""

import dataclasses

import jax
import jax.numpy as jnp

from apd_jax import randomness, sites
from apd_jax.attribution import Attributed
from apd_jax.components import Components
from apd_jax.data import SampleBatch
from apd_jax.objective.objective import Objective
from apd_jax.objective.terms import TERMS, Step
from apd_jax.training.config import Settings
from benchmarks import timing, work
from benchmarks.timing import Stage, Values

_OF_WEIGHTS = ("faithfulness", "simplicity")  # run no pass; simplicity needs the mask alone
_OF_PASSES = tuple(name for name in TERMS if name not in _OF_WEIGHTS)


def make_stages(settings: Settings, sample_batch: SampleBatch) -> dict[str, Stage]:
    """Return the stages of a step of the top-k objective, in order, for a single seed.

    The first stage reads `target`, `seed`, `state` and `components`; the last one computes the next
    state.
    """
    objective = settings.objective
    flowing = [n for n, term in TERMS.items() if term.flows and getattr(objective.coefficients, n)]
    if flowing:
        raise ValueError(f"gradients of {flowing} flow through the attributions: no stage has them")

    def sampling(values: Values) -> Values:
        key = randomness.step_key(randomness.root(values["seed"]), values["state"].step)
        return {"x": sample_batch(randomness.stream_of_step(key, "batch"), settings.batch_size)}

    def attribute(values: Values) -> Values:
        found = objective.attribute(values["target"], values["components"], values["x"])
        return found._asdict()

    def target_pass(values: Values) -> Values:
        outputs, records = sites.run(values["target"], values["x"], sites.as_is)
        return {"outputs": outputs, "records": records}

    def select(values: Values) -> Values:
        return {"chosen": objective.select(values["scores"], values["x"])}

    return {
        "sampling": sampling,
        "target pass": target_pass,
        "attributions": attribute,
        "selection": select,
        "masked pass and gradient": lambda values: {
            "masked_gradient": _gradient(objective, values, _OF_PASSES)
        },
        "faithfulness and simplicity gradient": lambda values: {
            "weight_gradient": _gradient(objective, values, _OF_WEIGHTS)
        },
        "optimiser": lambda values: _update(settings, values),
    }


def _gradient(objective: Objective, values: Values, names: tuple[str, ...]) -> Components:
    """Return the gradient of some of the objective's terms, for given attributions and mask."""
    weights = dataclasses.asdict(objective.coefficients)

    def loss(components):
        step = Step(
            objective,
            values["target"],
            components,
            values["x"],
            Attributed(values["scores"], values["outputs"], values["records"]),
            values["chosen"],
        )
        return objective.total({name: TERMS[name].value(step) for name in names if weights[name]})

    return jax.grad(loss)(values["components"])


def _update(settings: Settings, values: Values) -> Values:
    state, components = values["state"], values["components"]
    gradient = jax.tree.map(jnp.add, values["masked_gradient"], values["weight_gradient"])
    components, optimizer_state, norm = settings.optimizer().step(
        gradient, state.optimizer, components
    )
    state = state._replace(step=state.step + 1, components=components, optimizer=optimizer_state)
    return {
        "state": state,
        "components": components,
        "gradient_norm": norm,
    }


def measure(
    steps: dict[str, Stage],
    values: Values,
    *,
    shares_pass: bool,
    seconds: float,
    only: list[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Time every stage and count its work.

    Args:
      steps: Stages of the step.
      values: `target`, `seed`, `state` and the `components` of the state; leaves [S, ...].
      shares_pass: Whether the attributions include the target pass, as they do if the target is
        linearised. The pass is then not counted twice.
      seconds: Time for every timing of a stage.
      only: Names of the stages to measure; all if None. All stages are run once.

    Returns:
      `{stage: {"seconds", "spread", "operations", "bytes"}}` for one step of all seeds: the median,
      half the interquartile range, operations of matrix products, and the minimum of bytes that the
      stage reads and writes.
    """
    measured: dict[str, dict[str, float]] = {}
    for name, stage in steps.items():
        batched = jax.vmap(stage)
        # Not donated: the training continues with this state.
        computed = jax.jit(batched)(values)
        if only is None or name in only:
            measured[name] = _measure_one(batched, values, seconds)
        if name != "optimiser":
            values = {**values, **computed}
    if shares_pass and "target pass" in measured and "attributions" in measured:
        for field in ("seconds", "operations"):
            left = measured["attributions"][field] - measured["target pass"][field]
            measured["attributions"][field] = max(left, 0.0)
    return measured


def _measure_one(stage: Stage, values: Values, seconds: float) -> dict[str, float]:
    timed = timing.repeat(stage, values, seconds)
    counted = work.count(stage, values)
    return {
        "seconds": timed.median(),
        "spread": timed.spread(),
        "operations": counted.operations,
        "bytes": counted.bytes,
    }
