"""Control flow and custom derivatives: what the interpreter follows and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from networks import normal

import apd_jax
from apd_jax.components import init_components
from apd_jax.errors import UserError

X = normal(0, 3, 4)
P = {"w": 0.7 * normal(1, 3, 4, 4), "v": normal(2, 4, 2)}
LAYERS = {"v": (4, 2)} | {f"w[{i}]": (4, 4) for i in range(3)}


def target_of(apply_fn, params=P, x=X):
    """The target with all of its sites."""
    return apd_jax.Target(apply_fn, params, inputs=x)


def shapes(apply_fn, params=P):
    """{site: shape}."""
    return {name: site.shape for name, site in target_of(apply_fn, params).sites.items()}


def by_gradient(target, components, x, name):
    """Attributions [B, C] of a leaf that is one site, each output's gradient by `jax.grad`."""
    apply_fn, params = target.apply_fn, target.params
    vectors = apd_jax.in_parameter_space(target, components)[name]

    def one(example):
        outputs = jax.eval_shape(apply_fn, params, example[None]).shape[1]
        gradients = jax.vmap(
            lambda o: jax.grad(lambda p: apply_fn(p, example[None])[0, o])(params)[name]
        )(jnp.arange(outputs))
        along = jnp.einsum("oij,cij->co", gradients, vectors)
        return jnp.sqrt(jnp.mean(along**2, axis=1))

    return jax.vmap(one)(x)


def step(h, w):
    """A layer that hands its slice of the weights on."""
    return jnp.tanh(h @ w), w


def transposed_step(h, w):
    """A layer that hands on the transpose of its slice."""
    return jnp.tanh(h @ w), w.T


class ControlFlowTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda body: body,),
        (jax.checkpoint,),
        (jax.jit,),
        (lambda body: jax.checkpoint(jax.jit(body)),),
    )
    def test_scan_whose_body_returns_its_slice(self, wrap):
        def apply_fn(p, x):
            return jax.lax.scan(wrap(step), x, p["w"])[0] @ p["v"]

        self.assertEqual(shapes(apply_fn), LAYERS)
        apd_jax.check_target(target_of(apply_fn), X)

    def test_slices_that_a_scan_collects_are_used_in_another(self):
        def apply_fn(p, x):
            h, collected = jax.lax.scan(jax.checkpoint(transposed_step), x, p["w"], reverse=True)
            return jax.lax.scan(step, h, collected)[0] @ p["v"]

        target = target_of(apply_fn)
        self.assertEqual(target.sites["w[1]"].kinds, ("product", "product, transposed"))
        apd_jax.check_target(target, X)

    @parameterized.parameters(
        (lambda w: jnp.stack([w[2], w[0], w[1]]),),
        (lambda w: jnp.stack(jnp.unstack(w)[::-1]),),
        (lambda w: jnp.concatenate([w[1:], w[:1]]),),
    )
    def test_leaf_put_together_again(self, rearrange):
        def apply_fn(p, x):
            return jax.lax.scan(step, x, rearrange(p["w"]))[0] @ p["v"]

        self.assertEqual(shapes(apply_fn), LAYERS)
        apd_jax.check_target(target_of(apply_fn), X)

    @parameterized.parameters(
        (lambda w: w[jnp.array([1, 3, 0, 2])],),
        (lambda w: w[:, np.array([-1, 0, 1, 2])],),
        (lambda w: jnp.take(w, jnp.array([3, 2, 1, 0]), 1),),
        (lambda w: w[jnp.arange(4)[::-1]],),  # an order that the program computes
        (lambda w: w[jnp.argsort(jnp.sin(jnp.arange(40.0)))[:4] % 4],),
        (lambda w: w[jnp.array([[0, 1], [2, 3]])].reshape(4, 4),),
        (lambda w: jax.jit(lambda w, i: w[i])(w, jnp.array([1, 1, 0, 2])),),
        (lambda w: jnp.tile(w[:2], (2, 1)),),
        (lambda w: jax.ad_checkpoint.checkpoint_name(w, "w"),),
        (lambda w: jax.lax.optimization_barrier(w),),
        (lambda w: jax.lax.optimization_barrier((w, jnp.ones(2)))[0],),
        (lambda w: jax.device_put(w),),
    )
    @pytest.mark.slow
    def test_moves_that_the_program_fixes(self, move):
        def apply_fn(p, x):
            return jnp.tanh(x @ move(p["m"])) @ p["v"]

        params = {"m": normal(5, 4, 4), "v": P["v"]}
        target = target_of(apply_fn, params)
        self.assertEqual(shapes(apply_fn, params), {"m": (4, 4), "v": (4, 2)})
        apd_jax.check_target(target, X)
        components = init_components(jax.random.key(1), target, num_components=3, rank=2)
        alone = apd_jax.Target(apply_fn, params, "m", inputs=X)
        objective = apd_jax.Objective(topk=1.0)
        found = objective.attribute(alone, {"m": components["m"]}, X).scores
        expected = by_gradient(target, components, X, "m")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_barrier_around_several_weights(self):
        def apply_fn(p, x):
            w, v, x = jax.lax.optimization_barrier((p["m"], p["v"], x))
            return jnp.tanh(x @ w) @ v

        params = {"m": normal(5, 4, 4), "v": P["v"]}
        self.assertEqual(shapes(apply_fn, params), {"m": (4, 4), "v": (4, 2)})

    @parameterized.parameters(
        (lambda p: p["t"][jnp.arange(3)],),
        (lambda p: p["t"][jnp.arange(3)] @ p["v"][:2],),
        (lambda p: p["t"][jnp.array([0, 2, 1])] @ p["s"][jnp.array([1, 0])],),
        (lambda p: jax.checkpoint(jnp.tanh)(p["t"][jnp.arange(3)]),),
        (lambda p: jnp.take(p["t"], jnp.array([0, 1, 9]), 0, fill_value=0),),
        (lambda p: p["t"][p["order"]],),
    )
    def test_rows_at_fixed_places_that_are_a_bias(self, bias):
        def apply_fn(p, x):
            return x @ p["v"] + bias(p).sum(0)

        params = {"v": P["v"], "t": normal(6, 4, 2), "s": normal(7, 2, 2), "order": jnp.arange(3)}
        target = target_of(apply_fn, params)
        self.assertEqual(list(target.sites), ["v"])
        self.assertIn("t [4, 2]: looked up at places that don't depend on", str(target.sites))
        apd_jax.check_target(target, X)

    @parameterized.parameters(
        (lambda p, x: p["t"][jnp.int32(x[:, 0] > 0)] @ p["v"],),
        (lambda p, x: p["t"][jnp.int32(x[:, 0] > 0) + jnp.arange(3) % 2] @ p["v"],),
    )
    def test_look_ups_of_the_inputs_stay_look_ups(self, apply_fn):
        target = target_of(apply_fn, {"v": P["v"], "t": normal(6, 4, 4)})
        self.assertEqual(target.sites["t"].kinds, ("look-up",))

    @parameterized.parameters("concatenate", "OptimizedLSTMCell")
    def test_weights_that_are_joined(self, kind):
        if kind == "concatenate":
            apply_fn = lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], axis=1)  # noqa: E731
            params = {"a": normal(0, 4, 2), "b": normal(1, 4, 3)}
            given = (apply_fn, params)
        else:
            module = nn.RNN(nn.OptimizedLSTMCell(4))
            variables = module.init(jax.random.key(0), X[:, None])
            given = (lambda p, x: module.apply(p, x[:, None]), variables)
        with self.assertRaisesRegex(UserError, "concatenate.*multiply by each.*LSTMCell"):
            target_of(*given)

    def test_collected_slices_of_two_leaves_are_refused(self):
        def apply_fn(p, x):
            return x @ jnp.stack([p["w"][0], p["u"]])[0] @ p["v"]

        self.assertEqual(shapes(apply_fn, P | {"u": normal(3, 4, 4)}), {"v": (4, 2)})

    @parameterized.parameters((0, 1), (0.0, 1 / 3 + 1e-3))
    def test_while_loop_of_fixed_length(self, start, by):
        def apply_fn(p, x):
            def turn(state):
                count, layer, h = state
                return count + by, layer + 1, jnp.tanh(h @ p["w"][layer])

            end = 3 * by - by / 2
            return jax.lax.while_loop(lambda s: s[0] < end, turn, (start, 0, x))[2] @ p["v"]

        self.assertEqual(shapes(apply_fn), LAYERS)
        target = target_of(apply_fn)
        np.testing.assert_allclose(
            apd_jax.sites.run(target, X, apd_jax.sites.as_is)[0], target(X), rtol=1e-6, atol=1e-6
        )
        apd_jax.check_target(target, X)

    def test_branch_that_the_program_chooses(self):
        branches = [lambda p, h: h @ p["w"][0], lambda p, h: jnp.tanh(h) @ p["w"][2]]

        def apply_fn(p, x):
            body = lambda i, h: jax.lax.switch(i, branches, p, h)  # noqa: E731
            return jax.lax.fori_loop(0, 2, body, x) @ p["v"]

        self.assertEqual(list(shapes(apply_fn)), ["v", "w[0]", "w[2]"])
        apd_jax.check_target(target_of(apply_fn), X)

    @parameterized.parameters(
        (lambda p, x: jax.lax.while_loop(lambda h: jnp.sum(h) < 1, lambda h: h @ p["w"][0], x),),
        (lambda p, x: jax.lax.fori_loop(0, p["n"], lambda i, h: h @ p["w"][0], x),),
        (lambda p, x: jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda i, h: h @ p["w"][0], x),),
        (
            lambda p, x: jax.lax.while_loop(
                lambda s: s[0] < 5000, lambda s: (s[0] + 1, s[1] @ p["w"][0]), (0, x)
            )[1],
        ),
    )
    def test_while_loop_of_unknown_length(self, loop):
        with self.assertRaisesRegex(UserError, "while loop.*scan of fixed length.*DirectAdjoint"):
            apd_jax.Target(lambda p, x: loop(p, x) @ p["v"], P | {"n": 2}, "w", inputs=X)

    def test_numbers_of_the_parameters_are_not_the_programs(self):
        """The same uses are met where the parameters have values as where they have none."""
        params = P | {"order": jnp.int32(1)}
        with self.assertRaisesRegex(UserError, "w .*don't depend on the inputs|w .*dynamic_slice"):
            apd_jax.Target(lambda p, x: x @ p["w"][p["order"]], params, "w", inputs=X)

    def test_complex_weights(self):
        with self.assertRaisesRegex(
            UserError, "complex64.*real and the imaginary.*x @ R and x @ I"
        ):
            apd_jax.Target(lambda p, x: (x @ p["c"]).real, {"c": P["v"] * (1 + 1j)}, inputs=X)

    @pytest.mark.slow
    def test_state_space_model_in_real_numbers(self):
        params = {name: normal(i, 2, 4) for i, name in enumerate(("B_re", "B_im"))}
        params |= {name: normal(i, 4, 3) for i, name in enumerate(("C_re", "C_im"))}
        params["decay"] = jnp.array([0.9, 0.8, 0.5, 0.3])
        params["turn"] = jnp.array([0.1, 0.5, 1.0, 2.0])
        x = normal(5, 3, 6, 2)

        def apply_fn(p, x):
            a = p["decay"] * jnp.cos(p["turn"]), p["decay"] * jnp.sin(p["turn"])

            def turn(state, u):
                re, im = state
                re, im = (
                    a[0] * re - a[1] * im + u @ p["B_re"],
                    a[0] * im + a[1] * re + u @ p["B_im"],
                )
                return (re, im), re @ p["C_re"] - im @ p["C_im"]

            start = jnp.zeros((2, len(x), 4))
            return jax.lax.scan(turn, (start[0], start[1]), jnp.swapaxes(x, 0, 1))[1].sum(0)

        def complex_form(p, x):
            b, c = p["B_re"] + 1j * p["B_im"], p["C_re"] + 1j * p["C_im"]
            a = p["decay"] * jnp.exp(1j * p["turn"])
            h, total = jnp.zeros((len(x), 4)), 0
            for t in range(6):
                h = a * h + x[:, t] @ b
                total += (h @ c).real
            return total

        np.testing.assert_allclose(
            apply_fn(params, x), complex_form(params, x), rtol=1e-4, atol=1e-4
        )
        target = target_of(apply_fn, params, x)
        self.assertEqual(list(target.sites), ["B_im", "B_re", "C_im", "C_re"])
        apd_jax.check_target(target, x)


@jax.custom_vjp
def three_times(x, w):
    """A product whose gradient with respect to the weight is three times as large."""
    return x @ w


three_times.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, 3 * saved[0].T @ g)
)


@jax.custom_vjp
def three_times_where(x, w, kept):
    """A product with such a gradient, of inputs that another operand switches on."""
    return (x * (kept > 0)) @ w


def _three_times_where_backward(saved, g):
    x, w, kept = saved
    on = kept > 0
    real = jnp.issubdtype(kept.dtype, jnp.floating)
    third = jnp.zeros_like(kept) if real else np.zeros(kept.shape, jax.dtypes.float0)
    return on * (g @ w.T), 3 * (on * x).T @ g, third


three_times_where.defvjp(
    lambda *given: (three_times_where(*given), given), _three_times_where_backward
)


@jax.custom_vjp
def looked_up(table, ids, scale):
    """Rows of a table with their gradients; the scale has none."""
    return table[ids] * jax.lax.stop_gradient(scale)


def _looked_up_backward(saved, g):
    table, ids, scale = saved
    rows = jnp.zeros_like(table).at[ids].add(g * scale)
    return rows, np.zeros(ids.shape, jax.dtypes.float0), jnp.zeros_like(scale)


looked_up.defvjp(lambda *given: (looked_up(*given), given), _looked_up_backward)


@jax.custom_vjp
def lean(x, w):
    """A product with the gradients of a product."""
    return x @ w


lean.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))


@jax.custom_vjp
def clipped(w):
    """A weight whose gradient is clipped."""
    return w


clipped.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -5, 5),))


@jax.custom_vjp
def rounded(x):
    """Rounding, straight-through."""
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))


@jax.custom_jvp
def half(x, w):
    """A product whose derivative along the weight is half of a product's."""
    return x @ w


half.defjvp(lambda at, by: (half(*at), by[0] @ at[1] + at[0] @ by[1] / 2))


@jax.custom_jvp
def steep(x):
    """An activation with a derivative of its own."""
    return jnp.tanh(x)


steep.defjvp(lambda at, by: (steep(*at), 2 * by[0]))

TWO = {"a": normal(1, 4, 5), "b": normal(2, 5, 2)}


class CustomDerivativesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("scaled", lambda p, x: jnp.tanh(three_times(x, p["a"])) @ p["b"]),
        ("scaled_under_jit", lambda p, x: jax.jit(three_times)(x, p["a"]) @ p["b"]),
        ("clipped", lambda p, x: x @ clipped(p["a"]) @ p["b"]),
        ("rounded_weight", lambda p, x: x @ rounded(p["a"]) @ p["b"]),
        ("along_a_direction", lambda p, x: half(x, p["a"]) @ p["b"]),
        ("mapped", lambda p, x: jax.vmap(three_times, (0, None))(x, p["a"]) @ p["b"]),
        ("masked", lambda p, x: three_times_where(x, p["a"], x > 0) @ p["b"]),
        ("with_a_flag", lambda p, x: three_times_where(x, p["a"], x[0, 0] < 9) @ p["b"]),
        (
            "with_whole_numbers",
            lambda p, x: three_times_where(x, p["a"], x.astype(jnp.int8)) @ p["b"],
        ),
        ("above_a_threshold", lambda p, x: three_times_where(x, p["a"], x[0, 0] - 5) @ p["b"]),
    )
    def test_rules_around_a_weight_are_refused(self, apply_fn):
        with self.assertRaisesRegex(UserError, "a \\[4, 5\\]: used inside a custom derivative"):
            apd_jax.Target(apply_fn, TWO, "a", inputs=X)

    @parameterized.named_parameters(
        (
            "of_a_look_up",
            lambda p, x: looked_up(p["a"], (x[:, 0] > 0).astype(int), x[:, 1:2]) @ p["b"],
            "a",
        ),
        ("beside", lambda p, x: jnp.tanh(three_times(x, p["a"])) @ p["b"], "b"),
        ("of_a_product", lambda p, x: jnp.tanh(lean(x, p["a"])) @ p["b"], "a"),
        ("of_an_activation", lambda p, x: rounded(x @ p["a"]) @ p["b"], "a"),
        ("before", lambda p, x: three_times(jnp.tanh(x @ p["a"]), p["b"]), "a"),
        ("of_an_activation_along", lambda p, x: steep(x @ p["a"]) @ p["b"], "a"),
        (
            "stopped",
            lambda p, x: (x @ p["a"] + jax.lax.stop_gradient(jnp.round(x @ p["a"]))) @ p["b"],
            "a",
        ),
    )
    @pytest.mark.slow
    def test_scores_are_those_of_the_networks_own_gradient(self, apply_fn, name):
        target = apd_jax.Target(apply_fn, TWO, name, inputs=X)
        components = init_components(jax.random.key(0), target, num_components=3, rank=1)
        expected = by_gradient(target, components, X, name)
        self.assertGreater(float(expected.max()), 0)
        for mode in ("auto", "reverse"):
            scores = apd_jax.gradient_attributions(target, components, X, mode=mode)
            np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
        apd_jax.check_target(target, X)

    @parameterized.parameters("float8_e4m3fn", "float8_e5m2", "bfloat16")
    def test_derivatives_are_compared_with_a_cast_to_few_bits(self, kind):
        cast = lambda array: array.astype(kind).astype(jnp.float32)  # noqa: E731
        after = lambda p, x: cast(jnp.tanh(x @ p["a"]) @ p["b"])  # noqa: E731
        apd_jax.check_target(target_of(after, TWO), X)
        with self.assertRaisesRegex(UserError, "not that of its own equations"):
            apd_jax.check_target(target_of(lambda p, x: after(p, x[::-1])[::-1], TWO), X)

    def test_weights_that_are_cast_to_few_bits(self):
        def network(p, x):
            small = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), p)
            return jnp.tanh(x @ small["a"]) @ small["b"]

        for seed in range(4):
            params = {"a": normal(seed, 4, 5), "b": normal(seed + 9, 5, 2)}
            params = jax.tree.map(np.asarray, params)  # of which a cast is no part of a trace
            apd_jax.check_target(target_of(network, params), X)

    def test_gradients_are_compared_where_there_is_no_derivative_along_a_direction(self):
        def apply_fn(p, x):
            return rounded(x[::-1] @ p["a"])[::-1] @ p["b"]

        with self.assertRaisesRegex(UserError, "change places"):
            apd_jax.check_target(apd_jax.Target(apply_fn, TWO, inputs=X), X)

    @parameterized.named_parameters(
        ("step", lambda p, x: (x @ p["a"] > 0).astype(jnp.float32) @ p["b"]),
        ("round", lambda p, x: jnp.round(x @ p["a"])),
        ("argmax", lambda p, x: jax.nn.one_hot(jnp.argmax(x @ p["a"], axis=-1), 5)),
        ("stopped", lambda p, x: jax.lax.stop_gradient(x @ p["a"])),
    )
    def test_nothing_can_be_attributed(self, apply_fn):
        target = apd_jax.Target(apply_fn, TWO, "a", inputs=X)
        components = init_components(jax.random.key(0), target, num_components=3, rank=1)
        for mode in ("auto", "forward", "reverse", "literal"):
            scores = apd_jax.gradient_attributions(target, components, X, mode=mode)
            np.testing.assert_array_equal(scores, np.zeros((3, 3)))
        with self.assertRaisesRegex(UserError, "nothing can be attributed"):
            apd_jax.check_target(target, X)
        with self.assertRaisesRegex(UserError, "nothing can be attributed"):
            apd_jax.decompose(target, X, num_components=3, topk=1.0, batch_size=3, steps=2)

    def test_operations_without_derivatives(self):
        def network(params, x):
            shape = jax.ShapeDtypeStruct((len(x), 5), jnp.float32)
            hidden = jax.pure_callback(np.tanh, shape, x @ params["a"], vmap_method="expand_dims")
            return hidden @ params["b"]

        with self.assertRaisesRegex(UserError, "can't be differentiated .*Pure callbacks"):
            apd_jax.check_target(apd_jax.Target(network, TWO, inputs=X), X)
        with self.assertRaisesRegex(UserError, "can't be differentiated .*Pure callbacks"):
            apd_jax.decompose(
                apd_jax.Target(network, TWO), X, num_components=3, topk=1.0, batch_size=3, steps=2
            )
        apd_jax.check_target(apd_jax.Target(network, TWO, "b", inputs=X), X)

    @parameterized.named_parameters(
        (
            "while_loop",
            lambda h: jax.lax.while_loop(lambda s: jnp.max(s) > 1, lambda s: s / 2, h),
        ),
        (
            "fori_loop",
            lambda h: jax.lax.fori_loop(0, 2 + (h[0, 0] > 0), lambda i, s: s / 2, h),
        ),
        (
            "in_a_scan",
            lambda h: jax.lax.scan(
                lambda s, _: (jax.lax.while_loop(lambda s: s[0, 0] > 1, jnp.sin, s), None),
                h,
                length=2,
            )[0],
        ),
        ("in_jit", jax.jit(lambda h: jax.lax.while_loop(lambda s: s[0, 0] > 1, jnp.sin, h))),
    )
    def test_loops_that_have_no_gradient(self, loop):
        """They have a derivative along a direction, by which attributions are computed."""

        def network(params, x):
            one = lambda h: loop(h[None])[0]  # noqa: E731  of one example, so that none mix
            return jax.vmap(one)(jnp.tanh(x @ params["a"])) @ params["b"]

        way = "while_loop.*; write the loop as a scan, or as a fori_loop of fixed bounds, or leave"
        with self.assertRaisesRegex(UserError, way):
            apd_jax.check_target(apd_jax.Target(network, TWO, inputs=X), X)
        with self.assertRaisesRegex(UserError, way):
            apd_jax.decompose(
                apd_jax.Target(network, TWO, "a"), X, num_components=3, topk=1.0, batch_size=3
            )
        apd_jax.check_target(apd_jax.Target(network, TWO, "b", inputs=X), X)

    def test_examples_on_which_nothing_happens_are_let_pass(self):
        """Their derivative is 0 as well; that of other examples is not."""
        target = apd_jax.Target(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], TWO)
        apd_jax.check_target(target, jnp.zeros((3, 4)))


class MessagesTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda p, x: x @ p["a"] @ p["b"],),
        (lambda p, x: jnp.einsum("bi,ij->bj", x, p["a"]) @ p["b"],),
    )
    def test_single_examples(self, apply_fn):
        with self.assertRaisesRegex(UserError, "single example.*numpy.stack"):
            apd_jax.check_target(apd_jax.Target(apply_fn, TWO), jnp.ones(4))

    @parameterized.parameters("BatchNorm", "Dropout")
    @pytest.mark.slow
    def test_nnx_in_training_mode(self, kind):
        from flax import nnx

        class Model(nnx.Module):
            def __init__(self, rngs):
                self.first = nnx.Linear(4, 5, rngs=rngs)
                self.between = (
                    nnx.BatchNorm(5, rngs=rngs)
                    if kind == "BatchNorm"
                    else nnx.Dropout(0.5, rngs=rngs)
                )
                self.last = nnx.Linear(5, 2, rngs=rngs)

            def __call__(self, x):
                return self.last(jnp.tanh(self.between(self.first(x))))

        for x in (X, jnp.ones((3, 4))):
            model = Model(nnx.Rngs(0))
            with self.assertRaisesRegex(UserError, "training mode.*model.eval"):
                apd_jax.check_target(apd_jax.Target.from_nnx(model), x)
        model.eval()
        apd_jax.check_target(apd_jax.Target.from_nnx(model), X)


@pytest.mark.slow
class NeuralOdeTest(parameterized.TestCase):
    """Diffrax, where it is installed: fixed steps are followed, others refused."""

    def solution(self, adjoint, controller):
        diffrax = pytest.importorskip("diffrax")

        def one(p, y):
            term = diffrax.ODETerm(lambda t, y, w: jnp.tanh(y @ w[0]) @ w[1])
            return diffrax.diffeqsolve(
                term,
                diffrax.Euler() if controller == "ConstantStepSize" else diffrax.Tsit5(),
                0.0,
                1.0,
                0.25,
                y,
                args=p["w"],
                adjoint=getattr(diffrax, adjoint)(),
                stepsize_controller=getattr(diffrax, controller)(
                    **({} if controller == "ConstantStepSize" else {"rtol": 1e-3, "atol": 1e-3})
                ),
                max_steps=16,
            ).ys[0]

        return lambda p, x: jax.vmap(lambda y: one(p, y))(x) @ p["v"]

    @parameterized.parameters("DirectAdjoint", "ForwardMode")
    def test_fixed_steps(self, adjoint):
        apply_fn = self.solution(adjoint, "ConstantStepSize")
        target = target_of(apply_fn)
        self.assertEqual(list(target.sites), ["v", "w[0]", "w[1]"])
        self.assertLen(target.sites["w[0]"].kinds, 4)
        apd_jax.check_target(target, X)

    @parameterized.parameters(
        ("RecursiveCheckpointAdjoint", "ConstantStepSize"),
        ("BacksolveAdjoint", "ConstantStepSize"),
        ("ForwardMode", "PIDController"),
    )
    def test_others(self, adjoint, controller):
        with self.assertRaisesRegex(UserError, "w .*fixed steps and adjoint=DirectAdjoint"):
            apd_jax.Target(self.solution(adjoint, controller), P, "w", inputs=X)


if __name__ == "__main__":
    absltest.main()
