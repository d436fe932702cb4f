"""CPU seconds of the parts of a transformer's step: `python -m benchmarks.transformer_parts`.

The problem is that of `transformer.py`. Every part is compiled alone and repeated; the numbers are
medians of the CPU time of the process, which other work on the machine changes little.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax

from apd_jax.components import init_components
from apd_jax.objective.coefficients import Coefficients
from benchmarks.transformer import Sizes, make_problem

_TERMS = ("faithfulness", "minimality", "simplicity")


def cpu_seconds(function: Callable, *arguments, repeats: int) -> float:
    """Return the median CPU seconds of a compiled function."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    found = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(sizes: Sizes, repeats: int) -> dict[str, float]:
    """Return CPU seconds by part."""
    target, settings, sample = make_problem(sizes)
    objective, key = settings.objective, jax.random.key(2)
    components = init_components(
        jax.random.key(0), target, num_components=sizes.components, rank=sizes.rank
    )
    x = sample(jax.random.key(1), sizes.batch)

    def attribute(components, x):
        return objective.attribute(target, components, x, key).scores

    scores = jax.jit(attribute)(components, x)
    chosen = jax.jit(objective.select)(scores, x)

    def gradient(name: str, route: str) -> Callable:
        weights = Coefficients(**{term: float(term == name) for term in _TERMS})
        routes = dataclasses.replace(objective.routes, masked_route=route)
        alone = dataclasses.replace(objective, coefficients=weights, routes=routes)

        def loss(components, x):
            return alone.total(alone.terms(target, components, x, key, chosen=chosen)[0])

        return jax.grad(loss)

    parts = {
        "target": (lambda c, x: target(x), components, x),
        "attributions": (attribute, components, x),
        "selection": (lambda s, x: objective.select(s, x).mask, scores, x),
        "faithfulness": (gradient("faithfulness", "auto"), components, x),
        "minimality, grouped": (gradient("minimality", "grouped"), components, x),
        "minimality, dense": (gradient("minimality", "dense"), components, x),
        "simplicity": (gradient("simplicity", "auto"), components, x),
    }
    return {name: cpu_seconds(*part, repeats=repeats) for name, part in parts.items()}


def main() -> None:
    """Measure the parts of one problem and print them as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transformer_parts", description=__doc__
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=json.loads, default={}, help="such as '{\"layers\": 2}'")
    args = parser.parse_args()
    found = measure(Sizes(**args.sizes), args.repeats)
    print(json.dumps({name: round(seconds, 4) for name, seconds in found.items()}, indent=1))


if __name__ == "__main__":
    main()
