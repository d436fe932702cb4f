"""What a training takes, counted before it runs, against the compiled step."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.programs import counts
from apd_jax.runtime import loop, step_programs
from apd_jax.training import presets
from apd_jax.training.trainer import Trainer
from benchmarks import transformer


def tms(params, x):
    return jax.nn.relu(x @ params["w"] @ params["w"].T + params["b"])


def residual_mlp(params, x):
    hidden = x @ params["embed"]
    for block in params["blocks"]:
        hidden = hidden + jax.nn.relu(hidden @ block["in"]) @ block["out"]
    return hidden @ params["embed"].T


def tms_problem():
    params = {"w": jnp.ones((20, 5)) / 5, "b": jnp.zeros(20)}
    target = apd_jax.Target(tms, params, inputs=jnp.zeros((3, 20)))
    options = {"num_components": 24, "rank": 2, "topk": 1.0, "batch_size": 256, "steps": 100}
    return target, SparseFeatures(20, 0.05), options | {"refine": {"every": 0.0}}


def residual_mlp_problem():
    blocks = [{"in": jnp.ones((64, 16)) / 8, "out": jnp.ones((16, 64)) / 4}] * 2
    params = {"embed": jnp.ones((20, 64)) / 8, "blocks": blocks}
    target = apd_jax.Target(residual_mlp, params, "blocks/*", inputs=jnp.zeros((3, 20)))
    data = np.random.default_rng(0).random((500, 20), np.float32)
    return target, data, {"num_components": 40, "rank": 4, "batch_size": 64, "steps": 3000}


def transformer_problem():
    sizes = transformer.Sizes(1, 12, 20, 4, 32, 2, 50, 2)
    target, _, _ = transformer.make_problem(sizes)
    data = np.random.default_rng(0).integers(0, 50, (100, 12), np.int32)
    options = {"num_components": 20, "rank": 2, "topk": 4.0, "batch_size": 4}
    return target, data, options | {"minimality_loss": "kl", "per_position": True}


class PageTest(absltest.TestCase):
    @pytest.mark.slow
    def test_code_of_the_page_on_scaling(self):
        """With a smaller network on one device, and three steps."""
        page = (pathlib.Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
        target, data, _ = tms_problem()
        names = {"apd_jax": apd_jax, "target": target, "data": data, "x": jnp.zeros((3, 20))}
        blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        self.assertLen(blocks, 2)
        for block in blocks:
            small = block.replace("5000", "8").replace("(1, 4, 2)", "(1, 1, 1), steps=3")
            exec(compile(small, "scaling.py", "exec"), names)


def memory_of_training(target, data, options):
    """Bytes of the compiled chunk of the training that `decompose` runs."""
    options = {"topk": 1.0} | options
    settings = apd_jax.config_fields.from_mapping(presets.base(options), options)
    example = data(jax.random.key(0), 3) if callable(data) else data[:3]
    settings = presets.with_exact_scores(settings, jax.eval_shape(target, example).shape[1:])
    seeds = jnp.zeros(1, jnp.uint32)
    trainer = Trainer(settings, loop.stack([target]), data, seeds)
    state = jax.eval_shape(trainer.init_state)
    fed = next(iter(trainer.feed(0, 20)))[1] if trainer.feed else None
    leaves, tree = jax.tree.flatten(trainer.context)
    program = step_programs.chunk(trainer.step, tree)
    found = program.lower(20, None, leaves, state, seeds, fed).compile().memory_analysis()
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    return total + found.output_size_in_bytes - found.alias_size_in_bytes


class PlanTest(parameterized.TestCase):
    @parameterized.parameters(tms_problem, residual_mlp_problem, transformer_problem)
    @pytest.mark.slow
    def test_near_the_compiled_training(self, problem):
        target, data, options = problem()
        x = data if callable(data) else data[:2]
        found = apd_jax.plan(target, x, **options)
        expected = memory_of_training(target, data, options)
        self.assertBetween(found.total / expected, 0.85, 1.15)
        self.assertBetween(found.counted / expected, 0.5, 2.0)
        self.assertEqual(found.collectives, {})
        self.assertIn("of the compiled step", str(found))

    @pytest.mark.slow
    def test_counts_shapes_without_any_weights(self):
        shapes = {
            "w": jax.ShapeDtypeStruct((1_000_000, 500), jnp.float32),
            "b": jax.ShapeDtypeStruct((1_000_000,), jnp.float32),
        }
        found = apd_jax.plan(
            apd_jax.Target(tms, shapes),
            jax.ShapeDtypeStruct((1, 1_000_000), jnp.float32),
            num_components=100,
            rank=2,
            batch_size=16,
            restarts=3,
            compile=False,
        )
        numbers = found.to_dict()
        self.assertEqual(numbers["bytes_parameters"], 3 * 4 * 501_000_000)
        self.assertEqual(numbers["bytes_factors"], 3 * 4 * 100 * 2 * 1_000_500)
        self.assertEqual(numbers["bytes_moments"], 3 * (2 * 4 * 100 * 2 * 1_000_500 + 8))
        self.assertEqual(numbers["bytes_batch"], 3 * 4 * 16 * 1_000_000)
        self.assertEqual(numbers["bytes_total"], numbers["bytes_counted"])
        self.assertIsNone(found.collectives)
        few = found.__class__(found.kinds, 10, None, 5, None, 9, 1)
        self.assertFalse(few.fits)
        self.assertIn("TOO LITTLE", str(few))

    def test_inputs_of_other_libraries(self):
        class Frame:
            """Rows as other libraries hold them: with a shape, without a dtype of NumPy's."""

            shape, dtype = (7, 20), "float"

            def __array__(self, dtype=None, copy=None):
                return np.ones(self.shape, "f4")

        target, _, options = tms_problem()
        given, plain = (
            apd_jax.plan(target, x, compile=False, **options) for x in (Frame(), np.ones((7, 20)))
        )
        self.assertEqual(given, plain)

    @parameterized.parameters(
        ({"mesh": 3}, "mesh must be three numbers"),
        ({"x": {"x": np.ones((3, 5)), 1: np.ones(3)}}, "keys can't be sorted"),
        ({"stepz": 3}, "no option 'stepz'; did you mean 'steps'"),
        ({"num_components": 10**8}, r"ranks at most 2\*\*31 - 1 .* lower batch_size or num_comp"),
        ({"topk": 9.0}, "topk must be at most num_components"),
        ({"mesh": (1, 1)}, "mesh must be three numbers"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"x": {"a": 1.0}}, r"x must be arrays \[N, ...\] or their shapes.*got 1.0"),
        ({"x": {"x": np.ones((3, 5))}}, "the network fails on inputs"),
        ({"x": lambda key: np.ones((3, 5))}, "a sampling function .* which fails"),
        ({"target": lambda params, x: x}, "the network must be a Target, got a function"),
    )
    def test_refuses(self, options, message):
        target, data, given = tms_problem()
        with self.assertRaisesRegex(UserError, message):
            apd_jax.plan(
                **({"target": target, "x": data} | given | {"num_components": 5} | options)
            )


class CountsTest(absltest.TestCase):
    def test_operations(self):
        def loop_of_products(x, w):
            return jax.lax.scan(lambda h, _: (h @ w, None), x, length=7)[0]

        x, w = jnp.ones((3, 4)), jnp.ones((4, 4))
        self.assertEqual(counts.operations(loop_of_products, x, w), 7 * 2 * 3 * 4 * 4)
        image, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
        convolve = lambda a, b: jax.lax.conv(a, b, (1, 1), "VALID")  # noqa: E731
        products = 2 * (5 * 7 * 7) * (3 * 2 * 2)
        self.assertEqual(counts.operations(convolve, image, kernel), products)

    def test_peak_bytes(self):
        w = jnp.ones((100, 100))

        def chain(x):
            return jnp.sum(jnp.tanh(jnp.exp(x @ w) + 1) @ w)

        # The second product is made from the first while that one is still there.
        x = jnp.ones((10, 100))
        self.assertEqual(counts.peak_bytes(chain, x), 2 * 4 * 1000)
        inner = jax.jit(lambda y: jnp.exp(y) @ w)
        self.assertEqual(counts.peak_bytes(lambda x: inner(x @ w), x), 2 * 4 * 1000)

    def test_collectives(self):
        text = """
          %all-reduce.1 = f32[4,5]{1,0} all-reduce(f32[4,5]{1,0} %x), replica_groups={}
          %a = (f32[2]{0}, bf16[3]{0}) all-reduce(f32[2]{0} %y, bf16[3]{0} %z), channel_id=1
          %b = pred[8]{0} all-gather(pred[2]{0} %m), dimensions={0}
          %c = f32[9]{0} add(f32[9]{0} %all-reduce.1, f32[9]{0} %q)
        """
        found = counts.collectives(text)
        self.assertEqual(found, {"all-reduce": (2, 80 + 8 + 6), "all-gather": (1, 8)})


if __name__ == "__main__":
    absltest.main()
