"""`Target.from_torch`: what goes in and comes out, and that torch is left as it was."""

import collections
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from torch import nn  # noqa: E402

import apd_jax  # noqa: E402
from apd_jax.sites.adapters import torch as adapter  # noqa: E402
from apd_jax.sites.adapters import torch_environment, torchax_import  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def own(module, *inputs, **keywords):
    with torch.no_grad():
        return module(*inputs, **keywords).numpy()


class Block(nn.Module):
    """Has a buffer, tensors kept anyhow, constants made on the way, and changes itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))
        self.kept = {"shift": [torch.tensor([3.0, 4.0])]}
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, factor=1.0, mask=None):
        self.calls += 1
        self.kept["last"] = x
        hidden = torch.relu(self.norm(self.first(x) + torch.arange(4)))
        hidden[:, 0] = torch.zeros(hidden.shape[0])
        y = self.second(hidden) * self.scale + self.kept["shift"][0] * factor
        return {"y": y if mask is None else y * mask[:, None], "hidden": hidden}


class Calling(nn.Module):
    """Parts, and a function of them and the inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs, **keywords):
        return self.function(*self.children(), *inputs, **keywords)


def block():
    with torch.random.fork_rng():  # which torchax breaks
        torch.manual_seed(0)
        module = Block()
    for seed in range(3):
        module(drawn(8, 3, seed=seed))
    module.kept.pop("last")
    return module.eval()


class InputsTest(parameterized.TestCase):
    x = drawn(5, 3)

    @parameterized.named_parameters(
        ("a tensor", lambda x: x),
        ("NumPy, double", lambda x: x.double().numpy()),
        ("JAX", lambda x: jnp.asarray(x.numpy())),
        ("positions", lambda x: (x, torch.ones(len(x), 1))),
        ("keywords", lambda x: {"x": x, "mask": np.ones(len(x))}),
    )
    def test_inputs(self, given):
        module = block()
        inputs = given(self.x)
        target = apd_jax.Target.from_torch(module, inputs, "y")
        self.assertLess(target.conversion_error, 1e-6)
        args = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), "float32"), inputs)
        expected = own(lambda x: module(x)["y"], self.x)
        np.testing.assert_allclose(target(args), expected, rtol=1e-5, atol=1e-5)

    @parameterized.named_parameters(
        ("a key", "y", (5, 2)), ("a function", lambda found: found["hidden"][:, 1:], (5, 3))
    )
    def test_outputs(self, output, shape):
        target = apd_jax.Target.from_torch(block(), self.x, output)
        self.assertEqual(target(jnp.asarray(self.x.numpy())).shape, shape)

    def test_all_outputs(self):
        target = apd_jax.Target.from_torch(block(), self.x)
        self.assertEqual(set(target(jnp.asarray(self.x.numpy()))), {"y", "hidden"})

    def test_a_module_that_was_made_in_inference_mode(self):
        with torch.inference_mode():
            module, x = nn.Linear(4, 3).eval(), torch.randn(3, 4)
            module.register_buffer("scale", torch.ones(3))
            within = apd_jax.Target.from_torch(module, x)
        for target in (within, apd_jax.Target.from_torch(module, x)):
            self.assertLess(target.conversion_error, 1e-6)

    def test_within_a_block_of_mixed_precision(self):
        module = torch.nn.Linear(4, 4).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target = apd_jax.Target.from_torch(module, torch.randn(3, 4))
        self.assertLess(target.conversion_error, 1e-6)

    @parameterized.parameters(
        lambda linear, x: torch.fft.fft(linear(x)).conj(),
        lambda linear, x: torch.fft.fft(linear(x)).conj().imag,
    )
    def test_outputs_that_torch_only_marks_as_conjugate_or_negative(self, function):
        module = Calling(function, linear=nn.Linear(3, 4)).eval()
        target = apd_jax.Target.from_torch(module, self.x)
        self.assertLess(target.conversion_error, 1e-6)

    def test_names_are_those_of_torch(self):
        module = nn.ModuleDict({"a": block(), "b": nn.Linear(3, 3)})
        module.forward = lambda x: module["a"](module["b"](x))["y"]
        with self.assertRaisesRegex(apd_jax.UserError, "neither belongs to the module"):
            apd_jax.Target.from_torch(module.eval(), self.x)  # the function holds the module itself
        target = apd_jax.Target.from_torch(block(), self.x, "y", "*cond")
        self.assertEqual(list(target.sites), ["second.weight"])
        self.assertEqual(target.sites.full_name("second"), "second.weight")
        target = apd_jax.Target.from_torch(block(), self.x, "y", ["first.weight", "second"])
        self.assertEqual(list(target.sites), ["first.weight", "second.weight"])

    def test_places_are_lines_of_modules(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm, self.last = nn.LayerNorm(3), nn.Linear(3, 3)
                self.scale = nn.Parameter(torch.randn(3))

            def forward(self, x):
                h = self.scale * self.norm(self.last(x))
                return nn.functional.scaled_dot_product_attention(h, h, h)

        target = apd_jax.Target.from_torch(Scaled().eval(), torch.randn(2, 4, 3))
        places = {left.path: left.reason for left in target.sites.left}
        self.assertLen(places, 4)
        self.assertRegex(places["last.bias"], r"\(Linear\.forward\)")
        self.assertRegex(places["norm.bias"], r"\(LayerNorm\.forward\)")
        self.assertRegex(places["norm.weight"], r"\(LayerNorm\.forward\)")
        self.assertIn("torch_conversion_test.py", places["scale"])

    def test_whole_numbers_become_int32_and_must_fit(self):
        module = nn.Embedding(5, 3).eval()
        ids = torch.tensor([[1, 2], [3, 4]])
        target = apd_jax.Target.from_torch(module, ids)
        np.testing.assert_array_equal(target(jnp.asarray(ids.numpy())), own(module, ids))
        with self.assertRaisesRegex(apd_jax.UserError, "1099511627776, which does not fit int32"):
            apd_jax.Target.from_torch(module, torch.tensor([2**40]))

    @parameterized.parameters(collections.UserDict, dict)
    def test_lists_of_numbers(self, kind):
        module = Calling(lambda table, ids, scale: table(ids) * scale, table=nn.Embedding(5, 3))
        inputs = {"ids": [[1, 2], [3, 4], [0, 1]], "scale": [[[0.5]], [[1.0]], [[2.0]]]}
        target = apd_jax.Target.from_torch(module.eval(), kind(inputs))
        expected = own(module, *map(torch.tensor, inputs.values()))
        arrays = {name: jnp.asarray(rows) for name, rows in inputs.items()}
        np.testing.assert_allclose(target(arrays), expected, rtol=1e-6)
        with self.assertRaisesRegex(apd_jax.UserError, "padded or cut to the same length"):
            apd_jax.Target.from_torch(module, inputs | {"ids": [[1, 2], [3], [0, 1]]})

    def test_a_row_for_padding_has_a_derivative(self):
        module = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 2)).eval()
        target = apd_jax.Target.from_torch(module, torch.tensor([[0, 1], [2, 0], [3, 1]]))
        ids = jnp.zeros((3, 2), int)
        gradient = jax.grad(lambda params: jnp.sum(target.apply_fn(params, ids)))(target.params)
        self.assertGreater(np.abs(gradient["0.weight"][0]).max(), 0)
        apd_jax.check_target(target, jnp.asarray([[0, 1], [2, 0], [3, 1]]))

    def test_other_precision_by_a_copy(self):
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).half().eval()
        with self.assertRaisesRegex(apd_jax.UserError, '0.weight is float16.*dtype="float32"'):
            apd_jax.Target.from_torch(module, self.x.half())
        target = apd_jax.Target.from_torch(module, self.x.half(), dtype="float32")
        self.assertEqual({leaf.dtype for leaf in target.params.values()}, {jnp.dtype("float32")})
        self.assertLess(target.conversion_error, 1e-6)
        self.assertEqual(module[0].weight.dtype, torch.float16)

    @parameterized.parameters("bfloat16", "float16", "float64")
    def test_buffers_of_other_precision(self, kind):
        module = Calling(lambda linear, x: linear(x) * linear.scale.float(), linear=nn.Linear(3, 4))
        scale = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=getattr(torch, kind))
        module.linear.register_buffer("scale", scale)
        module.linear.kept = [scale]
        target = apd_jax.Target.from_torch(module.eval(), self.x)
        self.assertLess(target.conversion_error, 1e-6)
        module.linear.weight.data = module.linear.weight.data.to(scale.dtype)
        with self.assertRaisesRegex(apd_jax.UserError, "linear.weight is"):
            apd_jax.Target.from_torch(module, self.x)

    def test_compiled_once_for_equal_shapes(self):
        target = apd_jax.Target.from_torch(block(), self.x, "y")
        traces = []

        @jax.jit
        def run(target, x):
            traces.append(1)
            return target(x)

        x = jnp.asarray(self.x.numpy())
        run(target, x)
        run(target.with_weights(target.weights), x + 1)
        self.assertLen(traces, 1)


class AttentionTest(parameterized.TestCase):
    """Rows of which every key is masked: 0 in torch's attention."""

    class Net(nn.Module):
        def __init__(self, bias, fused):
            super().__init__()
            self.q, self.bias, self.fused = nn.Linear(4, 4), bias, fused

        def forward(self, x, mask):
            allowed = mask[:, None, None, :].bool() & torch.ones(5, 5, dtype=torch.bool).tril()
            bias = torch.zeros(allowed.shape).masked_fill(~allowed, self.bias)
            q, k = self.q(x)[:, None], x[:, None]
            if self.fused:
                chosen = allowed if self.bias == -1.0 else bias
                attend = nn.functional.scaled_dot_product_attention
                return attend(q, k, k, attn_mask=chosen)[:, 0]
            return (torch.softmax(q @ k.mT + bias, -1) @ k)[:, 0]

    def setUp(self):
        super().setUp()
        mask = torch.ones(3, 5)
        mask[0, :2] = 0
        self.inputs = {"x": drawn(3, 5, 4), "mask": mask}

    @parameterized.parameters(-1.0, float("-inf"))
    def test_fused_attention_is_that_of_torch(self, bias):
        module = self.Net(bias, True).eval()
        target = apd_jax.Target.from_torch(
            module, self.inputs, valid=lambda batch: batch["mask"], sites="q"
        )
        everything = apd_jax.Target.from_torch(module, self.inputs)
        self.assertLess(max(target.conversion_error, everything.conversion_error), 1e-6)
        x = jax.tree.map(lambda leaf: jnp.asarray(leaf.numpy()), self.inputs)
        gradient = jax.grad(lambda params: jnp.sum(target.apply_fn(params, x) ** 2))(target.params)
        inputs = {name: leaf.clone() for name, leaf in self.inputs.items()}
        torch.sum(module(**inputs) ** 2).backward()
        np.testing.assert_allclose(
            gradient["q.weight"], module.q.weight.grad.numpy(), rtol=1e-4, atol=1e-5
        )

    def test_nan_is_refused(self):
        module = self.Net(float("-inf"), False).eval()
        with self.assertRaisesRegex(apd_jax.UserError, "NaN at example 0, position 0.*valid="):
            apd_jax.Target.from_torch(module, self.inputs)
        with self.assertRaisesRegex(apd_jax.UserError, "derivative by q.* is not finite"):
            apd_jax.Target.from_torch(module, self.inputs, valid=lambda batch: batch["mask"])
        with self.assertRaisesRegex(apd_jax.UserError, r"value for each example, \[3\].*\(2,\)"):
            apd_jax.Target.from_torch(module, self.inputs, valid=lambda batch: np.ones(2))

    def test_a_finite_mask_is_taken(self):
        module = self.Net(torch.finfo(torch.float32).min, False).eval()
        target = apd_jax.Target.from_torch(module, self.inputs, valid=lambda batch: batch["mask"])
        self.assertLess(target.conversion_error, 1e-6)


class ValidTest(parameterized.TestCase):
    """What `valid=` of from_torch may give."""

    linear = nn.Linear(6, 4).eval()

    @parameterized.parameters(
        (lambda batch: batch["mask"].bool(), "valid is called with a batch.*'bool'"),
        (torch.ones(6, 5), "valid must be a function of the batch.*Tensor"),
        (lambda batch, other: batch["mask"], r"valid must be a function of \(batch\)"),
        (lambda batch: batch["mask"][:, :3], r"\(6, 3\), but .* shape \(6, 5, 4\)"),
        (lambda batch: batch["mask"][:2], r"one value for each example, \[6\]"),
        (lambda batch: batch["mask"] * 0, "valid leaves nothing that counts"),
    )
    def test_refused(self, valid, message):
        module = Calling(lambda linear, x, mask: linear(x), linear=self.linear).eval()
        inputs = {"x": drawn(6, 5, 6), "mask": torch.ones(6, 5)}
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.Target.from_torch(module, inputs, valid=valid)

    def test_padding_in_front(self):
        module = Calling(lambda linear, x: linear(x), linear=self.linear).eval()
        x = drawn(6, 6)
        x[:4] = 0
        valid = lambda batch: (batch != 0).any(axis=1)  # noqa: E731
        target = apd_jax.Target.from_torch(module, x, valid=valid)
        self.assertLess(target.conversion_error, 1e-6)

    @parameterized.parameters((lambda mask: mask,), (lambda mask: mask[..., 0],))
    def test_positions_along_several_axes(self, chosen):
        def forward(linear, x, mask):
            y = linear(x)
            y = torch.where(mask[..., None], y, y + torch.rand_like(y))
            return {"y": y, "all": y.sum((1, 2, 3)) * 0, "others": y.movedim(-1, 1) * 0}

        module = Calling(forward, linear=self.linear).eval()
        mask = torch.ones(4, 3, 2, dtype=torch.bool)
        mask[1, 1] = mask[3, 2] = False
        inputs = {"x": drawn(4, 3, 2, 6), "mask": mask}
        target = apd_jax.Target.from_torch(
            module, inputs, valid=lambda batch: chosen(batch["mask"])
        )
        self.assertLess(target.conversion_error, 1e-6)
        with self.assertRaisesRegex(apd_jax.UserError, "differ between two runs"):
            apd_jax.Target.from_torch(module, inputs)


class LeftPaddingTest(parameterized.TestCase):
    """Decoders of Hugging Face; the first queries have only masked keys, of an example all."""

    models = {
        "GPT2LMHeadModel": dict(n_embd=8, n_layer=1, n_head=2, n_positions=8),
        "LlamaForCausalLM": dict(
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
    }

    @parameterized.product(name=tuple(models), attention=("eager", "sdpa"))
    @pytest.mark.slow
    def test_outputs_and_gradients_are_those_without_padding(self, name, attention):
        transformers = pytest.importorskip("transformers")
        model = getattr(transformers, name)
        config = model.config_class(
            vocab_size=9,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation=attention,
            **self.models[name],
        )
        with torch.random.fork_rng():
            module = model(config).eval()
        mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
        inputs = {"input_ids": torch.arange(15).reshape(3, 5) % 9, "attention_mask": mask}
        if name == "GPT2LMHeadModel":  # of absolute positions, which it counts from the padding on
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        target = apd_jax.Target.from_torch(
            module, inputs, "logits", valid=lambda batch: batch["attention_mask"], use_cache=False
        )
        self.assertLess(target.conversion_error, 1e-6)
        padded = {name: jnp.asarray(leaf.numpy()) for name, leaf in inputs.items()}
        alone = {name: leaf[:1, 3:] for name, leaf in padded.items()}

        def outputs(params, x):
            return target.apply_fn(params, x)[0, -2:]

        for function in (outputs, jax.jacrev(lambda params, x: outputs(params, x).std())):
            found, expected = (jax.jit(function)(target.params, x) for x in (padded, alone))
            near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
            jax.tree.map(near, found, expected)


class UnchangedTest(absltest.TestCase):
    x = drawn(5, 3)

    def test_the_module(self):
        module = block()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        target = apd_jax.Target.from_torch(module, self.x, "y")
        expected = np.asarray(target(jnp.asarray(self.x.numpy())))
        self.assertEqual(set(module.kept), {"shift"})
        self.assertTrue(all(parameter.requires_grad for parameter in module.parameters()))
        for name, tensor in module.state_dict().items():
            self.assertTrue(torch.equal(tensor, before[name]), name)
        with torch.no_grad():  # nothing is shared
            for tensor in module.state_dict().values():
                tensor.zero_()
        np.testing.assert_array_equal(target(jnp.asarray(self.x.numpy())), expected)

    def test_activations_that_it_keeps_from_a_call_with_gradients(self):
        def keeping(linear, x):
            linear.kept = [linear(x)]
            return torch.relu(linear.kept[0])

        module = Calling(keeping, linear=nn.Linear(3, 4)).eval()
        module(drawn(7, 3))
        kept = module.linear.kept[0]
        for options in ({}, {"dtype": "float32"}):
            target = apd_jax.Target.from_torch(module, self.x, **options)
            self.assertEqual(list(target.sites), ["linear.weight"])
        self.assertIs(module.linear.kept[0], kept)
        self.assertIsNotNone(kept.grad_fn)

    def test_a_module_that_changes_its_weights(self):
        def clamped(linear, x):
            with torch.no_grad():
                linear.weight.clamp_(-0.1, 0.1)
            return linear(x)

        def scaled(linear, x):
            linear.weight.data.mul_(2)  # which torch does not count
            return linear(x)

        def replaced(linear, x):
            linear.bias.data = linear.bias.data + 1
            return linear(x)

        def failing(linear, x):
            linear.weight.data.zero_()
            raise ValueError

        for function, name in (
            (clamped, "linear.weight"),
            (scaled, "linear.weight"),
            (replaced, "linear.bias"),
            (failing, "linear.weight|itself can't be run"),
        ):
            with self.subTest(function.__name__):
                module = Calling(function, linear=nn.Linear(3, 4)).eval()
                self.check_unchanged(module, self.x, name)
        ids = torch.arange(4).reshape(2, 2)
        self.check_unchanged(nn.Embedding(4, 6, max_norm=0.1).eval(), ids, "parameter weight")
        self.check_unchanged(nn.EmbeddingBag(4, 6, max_norm=0.1).eval(), ids, "parameter weight")
        small = nn.Embedding(4, 6, max_norm=0.1)
        small.weight.data.mul_(0.01)
        self.check_unchanged(small.eval(), ids, "max_norm")  # where torch has nothing to change

    def check_unchanged(self, module, x, message):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.Target.from_torch(module, x)
        for name, tensor in module.state_dict().items():
            self.assertTrue(torch.equal(tensor, before[name]), name)

    def test_torch(self):
        fast, grad = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
        failures = []

        def use():
            for _ in range(30):
                y = torch.ones(3, requires_grad=True)
                (y * 2).sum().backward()
                if type(y) is not torch.Tensor or y.device.type != "cpu" or y.grad.sum() != 6:
                    failures.append(y)

        threads = [threading.Thread(target=use) for _ in range(2)]
        threads += [
            threading.Thread(
                target=lambda: errors.append(
                    apd_jax.Target.from_torch(block(), self.x, "y").conversion_error
                )
            )
            for _ in range(2)
        ]
        errors = []
        for thread in threads:
            thread.start()
        use()
        for thread in threads:
            thread.join()
        self.assertEmpty(failures)
        self.assertLen(errors, 2)
        self.assertEqual(torch.backends.mha.get_fastpath_enabled(), fast)
        self.assertEqual(torch.is_grad_enabled(), grad)
        self.assertEqual(torch.get_default_device().type, "cpu")
        with self.assertRaises(AttributeError):
            torch.ops.aten.prod.no_such_dimname  # noqa: B018

    def test_no_accelerator_appears(self):
        torchax_import.load()
        self.assertFalse(torch.accelerator.is_available() and not torch.cuda.is_available())
        loader = torch.utils.data.DataLoader(torch.arange(4), batch_size=2, pin_memory=True)
        self.assertLen(list(loader), 2)

    def test_after_an_error(self):
        with self.assertRaises(ZeroDivisionError), torch_environment.running():
            raise ZeroDivisionError
        self.assertIs(type(torch.ones(2) + torch.zeros(2)), torch.Tensor)

    def test_importing_the_package_imports_no_torch(self):
        code = "import sys, apd_jax; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)

    def test_importing_torchax_is_taken_back(self):
        code = """
import os, jax, torch
options = jax.config.jax_pjrt_client_create_options
original = torch._ops.OpOverloadPacket.__getattr__
from apd_jax.sites.adapters import torchax_import
torchax_import.load()
assert torch.backends.mha.get_fastpath_enabled()
assert torch._ops.OpOverloadPacket.__getattr__ is original
assert jax.config.jax_pjrt_client_create_options == options, jax.config
assert "ENABLE_RUNTIME_UPTIME_TELEMETRY" not in os.environ
"""
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)

    def test_placeholders_are_for_named_tensors_alone(self):
        with torchax_import.named_overloads():
            self.assertIsNotNone(torch.ops.aten.prod.dim_Dimname)
            self.assertIs(torch.ops.aten.prod.dim_int, torch.ops.aten.prod.dim_int)
            with self.assertRaises(AttributeError):
                torch.ops.aten.prod.nothing_of_the_kind  # noqa: B018


def keeping(linear, x):
    linear.kept = torch.tanh(linear(x))
    return linear.kept * linear.scales[0]


class BackTest(parameterized.TestCase):
    x = drawn(40, 3)

    @pytest.mark.slow
    def test_kept_activations_are_not_saved(self):
        made, directory = [], self.enterContext(tempfile.TemporaryDirectory())
        for seed in range(4):
            module = Calling(keeping, linear=nn.Linear(3, 4)).eval()
            module.linear.scales = [torch.tensor(float(2 - seed))]
            made.append(module)
        made[0](self.x[:7])
        target = apd_jax.Target.from_torch(made[0], self.x)
        self.assertEqual(list(map(jnp.shape, target.apply_fn.state.values())), [()])
        components = apd_jax.init_components(jax.random.key(0), target, num_components=3, rank=1)
        x = jnp.asarray(self.x.numpy())
        settings = self.made[0].settings
        apd_jax.Decomposition(target, components, settings, example=x[:3]).save(directory)
        made[1](self.x[:2])
        for module in made:
            loaded = apd_jax.load(directory, module)
            np.testing.assert_array_equal(loaded.target(x), target(x))
        loaded.save(os.path.join(directory, "again"))
        apd_jax.load(os.path.join(directory, "again"), made[0])

    @functools.cached_property
    def made(self):
        target = apd_jax.Target.from_torch(block(), self.x, "y", factor=2.0)
        components = apd_jax.init_components(jax.random.key(0), target, num_components=3, rank=1)
        objective = apd_jax.Objective(coefficients=apd_jax.Coefficients(minimality=1.0), topk=1.0)
        settings = apd_jax.Settings(objective=objective, num_components=3)
        x = jnp.asarray(self.x.numpy())
        return apd_jax.Decomposition(target, components, settings, example=x[:3]), x

    def test_loaded_into_another_module(self):
        made, x = self.made
        directory = self.enterContext(tempfile.TemporaryDirectory())
        made.save(directory)
        other = Block().eval()
        loaded = apd_jax.load(directory, other)
        np.testing.assert_array_equal(loaded.target(x), made.target(x))
        np.testing.assert_array_equal(loaded(x), made(x))
        self.assertEqual(float(other.calls), 0)

        class Otherwise(Block):
            def forward(self, x, factor=1.0):
                return {"y": -super().forward(x, factor)["y"]}

        with self.assertRaisesRegex(apd_jax.UserError, "does not compute what"):
            apd_jax.load(directory, Otherwise().eval())
        with self.assertRaisesRegex(apd_jax.UserError, "parameters differ from the saved ones"):
            apd_jax.load(directory, nn.Linear(3, 4).eval())
        with self.assertRaisesRegex(apd_jax.UserError, "training mode"):
            apd_jax.load(directory, Block())

    def test_keywords_of_all_kinds(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 4)

            def forward(self, x, shape, options, scale):
                y = self.linear(x).reshape(len(x), *shape) * options["factor"]
                return y, y * torch.as_tensor(scale)

        target = apd_jax.Target.from_torch(
            Net().eval(),
            self.x,
            np.int64(1),
            shape=(2, 2),
            options={"factor": np.float32(2)},
            scale=np.array([1.0, 3.0], np.float32),
        )
        settings = json.loads(json.dumps(target.apply_fn.settings))
        apply_fn, _ = adapter.restored(Net().eval(), settings)
        x = jnp.asarray(self.x.numpy())
        np.testing.assert_array_equal(apply_fn(target.params, x), target(x))

    @parameterized.parameters(
        lambda array: torch.from_numpy(array),
        lambda array: torch.from_numpy(array).double(),
        lambda array: array,
        lambda array: array.astype("float64"),
        jnp.asarray,
        lambda array: jnp.asarray(array, jnp.bfloat16),
    )
    def test_arrays_as_keywords(self, given):
        def forward(linear, x, mask, others):
            hidden = linear(x).masked_fill(mask, 0.0)
            return hidden + others["bias"] * others["scales"][0].sum()

        array = np.array([1.0, 2.0, 3.0, 5.0], np.float32)
        keywords = {"mask": given(array) > 4, "others": {"bias": given(array), "scales": None}}
        keywords["others"]["scales"] = (given(array),)
        module = Calling(forward, linear=nn.Linear(3, 4)).eval()
        target = apd_jax.Target.from_torch(module, self.x, **keywords)
        self.assertLess(target.conversion_error, 1e-6)
        settings = json.loads(json.dumps(target.apply_fn.settings))
        apply_fn, _ = adapter.restored(module, settings)
        x = jnp.asarray(self.x.numpy())
        np.testing.assert_array_equal(apply_fn(target.params, x), target(x))

    def test_a_mask_as_keyword(self):
        attention = nn.MultiheadAttention(4, 2, batch_first=True)
        forward = lambda part, x, attn_mask: part(x, x, x, attn_mask=attn_mask)[0]  # noqa: E731
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        module = Calling(forward, attention=attention).eval()
        target = apd_jax.Target.from_torch(module, drawn(3, 5, 4), attn_mask=mask)
        self.assertLess(target.conversion_error, 1e-6)
        self.assertLen(target.sites, 2)

    def test_a_keyword_that_forward_changes(self):
        module = Calling(lambda part, x, shift: part(x) + shift.mul_(2), part=nn.Linear(3, 4))
        shift = torch.ones(4)
        target = apd_jax.Target.from_torch(module.eval(), self.x, shift=shift)
        self.assertLess(target.conversion_error, 1e-6)
        self.assertEqual(shift.sum(), 4)

    def test_an_output_that_is_a_function_is_not_saved(self):
        target = apd_jax.Target.from_torch(block(), self.x, lambda found: found["y"])
        made = self.made[0]
        found = apd_jax.Decomposition(target, made.components, made.settings)
        directory = self.enterContext(tempfile.TemporaryDirectory())
        found.save(directory)
        with self.assertRaisesRegex(apd_jax.UserError, "output was a function"):
            apd_jax.load(directory, block())
        self.assertEqual(list(apd_jax.load(directory, target).components), list(made.components))

    def test_edited_weights(self):
        made, x = self.made
        scales = {0: 0.0, np.int64(2): np.float32(-1.5)}
        mask = jnp.tile(jnp.asarray([0.0, 1.0, -1.5]), (len(x), 1))
        expected = apd_jax.masked_apply(made.target, made.components, x, mask)
        params = made.edited(scales)
        np.testing.assert_allclose(made.target.apply_fn(params, x), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(params["first.bias"], made.target.params["first.bias"])
        module = block()
        found = module.load_state_dict(made.to_torch(scales), strict=False)
        self.assertEmpty(found.unexpected_keys)
        again = own(lambda x: module(x, 2.0)["y"], self.x)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
        for wrong in ({3: 1.0}, {0: float("nan")}, {0: "1"}, {0: 1j}):
            with self.assertRaisesRegex(apd_jax.UserError, "component"):
                made.edited(wrong)

    def test_edited_weights_of_a_compiled_module(self):
        def compiled():
            return torch.compile(block(), backend="eager")

        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.made[0].save(directory)
        target = apd_jax.Target.from_torch(compiled(), self.x, "y", factor=2.0)
        again = apd_jax.load(directory, target)
        for found in (again, apd_jax.load(directory, compiled())):
            state = found.to_torch()
            self.assertEmpty(compiled().load_state_dict(state, strict=False).unexpected_keys)
            self.assertEqual(set(state), {"_orig_mod.first.weight", "_orig_mod.second.weight"})
        self.assertEqual(list(target.params), list(self.made[0].target.params))
        state = apd_jax.load(directory, block()).to_torch()
        self.assertEqual(set(state), {"first.weight", "second.weight"})

    def test_only_networks_of_torch_go_back(self):
        made, _ = self.made
        apply_fn = lambda params, x: made.target.apply_fn(params, x)  # noqa: E731
        target = apd_jax.Target(apply_fn, made.target.params)
        other = apd_jax.Decomposition(target.at(self.made[1]), made.components, made.settings)
        with self.assertRaisesRegex(apd_jax.UserError, "from_torch"):
            other.to_torch()


if __name__ == "__main__":
    absltest.main()
