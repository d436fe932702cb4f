"""Random calls of `decompose`: each gives what saves, loads and reports, or one sentence.

    python tests/soak/calls.py --calls=200

Networks of the zoo, data of every kind and type, parameters on other devices, settings right and
wrong. Prints every call with its outcome, and at the end those that came out wrong.
"""

import argparse
import collections
import os
import pathlib
import random
import sys
import tempfile
import time
import traceback

os.environ["XLA_FLAGS"] = (  # nearly all time is compiling
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
)
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from zoo import NETWORKS, REFUSED

import apd_jax
from apd_jax import sites
from apd_jax.errors import UserError

SECONDS = 20.0  # of this process: others may share the machine
ROWS = 24


class Wrong(Exception):
    """A call that came out otherwise than it may."""


SETTINGS = {
    "num_components": ([2, 3, 5, np.int64(4), jnp.int32(3)], [0, -1, 2.5, "4", None]),
    "topk": ([1, 1.0, 1.5, 2, 0.5, None, np.float32(1.5), "auto"], [0, -1, 99, "all", np.nan]),
    "rank": ([None, 1, 2, np.int32(1)], [0, 1.5, 1000, "full"]),
    "steps": ([1, 2, 3, 4, 5], [0, -3, 1.5, None]),
    "batch_size": ([2, 4, 8, np.int64(8)], [0, 3, 1000, 8.0, "8"]),
    "restarts": ([1, 1, 2, 3], [0, None]),
    "seed": ([0, 1, np.int64(3), 2**32 - 1], [-1, 2**32, 0.5, None]),
    "chunk_steps": ([1, 2, 100], [0, 1.5]),
    "checkpoint_every": ([1, 2, 1000], [0]),
    "accumulate": ([1, 2], [3, 0]),
    "learning_rate": ([0.1, 1e-3], [0.0, -1.0, np.inf, 1e38, "fast"]),
    "schedule": (["constant", "cosine", "0:1 0.5:1 1:0"], ["sine", "", 3]),
    "unit_norm": ([False, True, np.bool_(True)], ["yes"]),
    "start": (["random", "partitioned", "covering", "singular"], ["zeros", None]),
    "selection": (["batch", "sample", "exact"], ["best"]),
    "per_position": ([False, True], [1]),
    "distil": ([False, True], ["no"]),
    "schatten_p": ([0.9, 1, 2.0], [0, 3]),
    "minimality_loss": (["mse", "kl", "function"], ["l1", 3]),
    "metric": (["rms", "fisher", "function"], ["sum"]),
    "attribution": (["gradient", "ablation", "activation", "integrated_gradients"], ["none"]),
    "attribution_mode": (["auto", "forward", "reverse", "literal", "sketch"], ["fast"]),
    "attribution_source": (["target", "components"], ["both"]),
    "masked_route": (["auto", "dense", "grouped"], ["sparse"]),
    "relative_losses": ([False, True], [2]),
    "relative_rate": ([False, True], [2]),
    "eigenbasis": ([False, True], ["yes"]),
    "refine": (
        [{"every": 0}, {"every": 2, "ramp": 1}, {"every": 1, "batch_size": 8, "ramp": 1}],
        [{"every": -1}, {"often": 2}, 3],
    ),
    "coefficients": (
        [
            {name: 0.5}
            for name in ("simplicity", "output", "partial", "minimality", "lp_minimality")
        ],
        [{"simple": 1}, {"simplicity": np.nan}, 2],
    ),
    "schedules": ([{"simplicity": "constant"}, {"topk": "0:1 1:0.5"}], [{"simplicity": "x"}]),
    "valid": (["all", "some", "none"], ["wrong"]),
    "hidden_sites": ([()], [("nowhere",)]),
    "workdir": (["run"], ["file"]),
    "stepz": ([], [3]),
}
VALID = {
    "all": lambda batch: jnp.ones(sites.batch_size(batch), bool),
    "some": lambda batch: jnp.arange(sites.batch_size(batch)) % 3 > 0,
    "none": lambda batch: jnp.zeros(sites.batch_size(batch), bool),
    "wrong": lambda batch: jnp.ones((2, 2)),
}
ALWAYS = ("num_components", "topk", "steps", "batch_size", "refine")  # always given
KINDS = (
    "numpy",
    "numpy",
    "jax",
    "list",
    "generator",
    "loader",
    "function",
    "memmap",
    "fortran",
    "readonly",
    "another device",
    "examples",
    "short",
    "empty",
    "ragged",
    "text",
)
TYPES = (
    *5 * ["float32"],
    "float16",
    "bfloat16",
    "float64",
    "int32",
    "int8",
    "uint8",
    "bool",
    "complex64",
)
PLACES = ("default", "default", "another", "replicated")


def drawn(rng):
    """The name of a network, the kind and type of the data, a place, and settings."""
    name = rng.choice(sorted(NETWORKS) if rng.random() < 0.9 else sorted(REFUSED))
    optional = sorted(name for name in SETTINGS if name not in ALWAYS and SETTINGS[name][0])
    names = [*ALWAYS, *rng.sample(optional, rng.randrange(5))]
    settings = {name: rng.choice(SETTINGS[name][0]) for name in names}
    if rng.random() < 0.25:
        wrong = rng.choice(sorted(SETTINGS))
        settings[wrong] = rng.choice(SETTINGS[wrong][1])
    return name, rng.choice(KINDS), rng.choice(TYPES), rng.choice(PLACES), settings


def rows_of(inputs, dtype):
    """ROWS examples like the few of the zoo, as NumPy's arrays of another type."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(jax.tree.leaves(inputs)[0]), ROWS)

    def one(leaf):
        leaf = np.asarray(leaf)[rows]
        if leaf.dtype.kind == "f":
            leaf = leaf + 0.1 * rng.standard_normal(leaf.shape)
        elif dtype.startswith(("float", "bfloat", "complex")):
            return leaf  # of tokens
        return leaf.astype(jnp.dtype(dtype))

    return jax.tree.map(one, inputs)


def data_of(kind, rows, folder, size):
    """The rows in a form in which users may have them."""

    def batches():
        for start in range(0, ROWS, size):
            yield jax.tree.map(lambda leaf, i=start: leaf[i : i + size], rows)

    class Loader:
        def __iter__(self):
            return batches()

    def memmap(leaf):
        file = np.memmap(
            folder / f"{leaf.nbytes}_{np.random.default_rng().integers(1 << 40)}",
            leaf.dtype,
            "w+",
            shape=leaf.shape,
        )
        file[:] = leaf
        return file

    def readonly(leaf):
        leaf = leaf.copy()
        leaf.flags.writeable = False
        return leaf

    every = {
        "numpy": lambda: rows,
        "jax": lambda: jax.tree.map(jnp.asarray, rows),
        "list": lambda: list(batches()),
        "generator": batches,
        "loader": Loader,
        "function": lambda: (
            lambda key, n: jax.tree.map(
                lambda leaf: jnp.asarray(leaf)[jax.random.randint(key, (n,), 0, ROWS)], rows
            )
        ),
        "memmap": lambda: jax.tree.map(memmap, rows),
        "fortran": lambda: jax.tree.map(np.asfortranarray, rows),
        "readonly": lambda: jax.tree.map(readonly, rows),
        "another device": lambda: jax.device_put(rows, jax.devices()[1]),
        "examples": lambda: [jax.tree.map(lambda leaf, i=i: leaf[i], rows) for i in range(ROWS)],
        "short": lambda: jax.tree.map(lambda leaf: leaf[:2], rows),
        "empty": lambda: jax.tree.map(lambda leaf: leaf[:0], rows),
        "ragged": lambda: [jax.tree.map(lambda leaf, n=n: leaf[:n], rows) for n in (4, 2, 6)],
        "text": lambda: np.array(["a", "b"] * 12),
    }
    return every[kind]()


def call(name, kind, dtype, place, settings, folder):
    """Make a call; a decomposition, or a UserError."""
    entry = (NETWORKS if name in NETWORKS else REFUSED)[name]()
    rows = rows_of(entry.inputs, dtype)
    params, select = entry.params, getattr(entry, "select", None)
    if place == "another":
        params = jax.device_put(params, jax.devices()[1])
    if place == "replicated":
        mesh = jax.make_mesh((2,), ("x",))
        params = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    options = dict(settings)
    size = options["batch_size"] if isinstance(options["batch_size"], int) else 8
    data = data_of(kind, rows, folder, max(size, 1))
    if kind in ("list", "generator", "loader", "ragged", "examples"):
        options.pop("batch_size")
    functions = {
        "metric": jnp.abs,
        "minimality_loss": lambda a, b: sum(
            jnp.mean(jnp.abs(u - v))
            for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        ),
    }
    for key, function in functions.items():
        if options.get(key) == "function":
            options[key] = function
    if "valid" in options:
        options["valid"] = VALID[options["valid"]]
    if "workdir" in options:
        if options["workdir"] == "file":
            (folder / "file").write_text("mine")
        options["workdir"] = folder / options["workdir"]
    target = apd_jax.Target(entry.apply_fn, params, select)
    return apd_jax.decompose(target, data, **options), entry, rows


def outcome(number, arguments) -> str:
    """What came of a call: "done", or "refused"."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        try:
            found, entry, rows = call(*arguments, folder)
        except UserError as error:
            text = str(error)
            if "Traceback" in text or not 10 < len(text) < 2000:
                raise Wrong(f"no sentence: {text}") from error
            return f"refused: {text:.150}"
        found.save(folder / "saved")
        given = {
            name: getattr(found.objective, name) for name in ("metric", "minimality_loss", "valid")
        }
        functions = {name: value for name, value in given.items() if callable(value)}
        network = apd_jax.Target(entry.apply_fn, entry.params)
        loaded = apd_jax.load(folder / "saved", network, **functions)
        jax.tree.map(np.testing.assert_array_equal, loaded.components, found.components)
        x = jax.tree.map(jnp.asarray, rows)
        repr(loaded.summary(x))
        if number % 4 == 0:
            loaded.report(folder / "report.html", x)
        return "done"


def run() -> None:
    """Read the options, go through the calls, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, outcomes, wrong, longest = random.Random(options.seed), [], [], 0.0
    for number in range(options.calls):
        arguments, start = drawn(rng), time.process_time()
        try:
            text = outcome(number, arguments)
            if time.process_time() - start > SECONDS:
                raise Wrong("took too long")
        except (Exception, SystemExit) as error:
            text = f"wrong: {type(error).__name__}: {error}"
            trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
            wrong.append(f"{arguments}\n{text:.500}\n{trace}")
        seconds = time.process_time() - start
        longest = max(longest, seconds)
        outcomes.append(text.partition(":")[0])
        print(number, f"{seconds:.1f} s", arguments, text[:300].replace("\n", " "), flush=True)
        if number % 10 == 9:
            jax.clear_caches()
    print("\n\n".join(wrong))
    print(dict(collections.Counter(outcomes)), f"longest {longest:.1f} s of CPU time")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run()
