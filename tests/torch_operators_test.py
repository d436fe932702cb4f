"""torch's operators on JAX arrays where torchax's own differ, fail, or hide a weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from torch import nn  # noqa: E402
from torch_calling import Calling, converted, drawn  # noqa: E402

import apd_jax  # noqa: E402


class NewTensorsTest(parameterized.TestCase):
    x = drawn(5, 3)

    @parameterized.parameters(
        lambda linear, x: linear(x) + x.new_tensor([1.0, 2.0, 3.0, 4.0]),
        lambda linear, x: linear(x) * x.new_tensor(2) + x.new_tensor(np.ones(1)),
        lambda linear, x: linear(x)[:, x.new_tensor([2, 0, 1], dtype=torch.int64)],
    )
    def test_new_tensor(self, function):
        target = converted(function, self.x, linear=nn.Linear(3, 4))
        self.assertLess(target.conversion_error, 1e-6)


class TypesTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda y, x: y * (x > 0).type_as(y),
        lambda y, x: (lambda mask: y * mask.type_as(y) + y.masked_fill(~mask, 0.0))(x > 0),
        lambda y, x: (lambda i: y[:, i] * i.type_as(y))(torch.arange(4)),
        lambda y, x: y * (x > 0)[:, :1].type_as(y),
    )
    def test_as_those_of_another_tensor(self, function):
        linear = nn.Linear(4, 4)
        target = converted(lambda part, x: function(part(x), x), drawn(5, 4), linear=linear)
        self.assertLess(target.conversion_error, 1e-6)


class RandomSlopesTest(absltest.TestCase):
    def test_are_their_mean_outside_of_training(self):
        for part in (nn.RReLU(), nn.RReLU(0.2, 0.3)):
            linear = nn.Linear(4, 4)
            target = converted(lambda one, two, x: two(one(x)), drawn(5, 4), one=linear, two=part)
            self.assertLess(target.conversion_error, 1e-6)


class KeywordsTest(parameterized.TestCase):
    """Functions called with torch's names of their arguments."""

    @parameterized.parameters(
        lambda m, x: nn.functional.linear(input=x, weight=m.weight, bias=m.bias),
        lambda m, x: nn.functional.linear(x, weight=m.weight),
        lambda m, x: nn.functional.bilinear(input1=x, input2=x.cos(), weight=m.weight[None]),
        lambda m, x: torch.take_along_dim(input=m(x), indices=torch.zeros(1, 1).long(), dim=1),
        lambda m, x: torch.tensor_split(m(x), sections=2, dim=1)[1],
        lambda m, x: torch.tensor_split(m(x), indices=[1], dim=1)[0],
        lambda m, x: torch.linalg.solve(A=2 * torch.eye(3), B=m(x).T).T,
        lambda m, x: m(x) * torch.linalg.det(A=2 * torch.eye(3)),
        lambda m, x: m(x) * torch.linalg.slogdet(A=2 * torch.eye(3))[1],
        lambda m, x: m(x) * torch.linalg.svd(A=torch.ones(2, 2), full_matrices=False)[1][0],
    )
    def test_functions(self, function):
        target = converted(function, drawn(3, 3), m=nn.Linear(3, 3))
        self.assertLess(target.conversion_error, 1e-5)
        self.assertEqual(list(target.sites), ["m.weight"])


class VectorsTest(absltest.TestCase):
    """Weights with one axis, or applied to one vector."""

    x = drawn(4, 5, 6)

    def check(self, target, sites):
        self.assertLess(target.conversion_error, 1e-6)
        self.assertEqual(sorted(target.sites), sorted(sites))
        apd_jax.check_target(target, jnp.asarray(self.x.numpy()))

    def test_a_product_with_a_vector(self):
        pooled = lambda linear, q, x: torch.tanh(linear(x)) @ q  # noqa: E731
        q = nn.Parameter(drawn(4))
        self.check(converted(pooled, self.x, linear=nn.Linear(6, 4), q=q), ["linear.weight", "q"])
        w = nn.Parameter(drawn(6))
        for function in (
            lambda w, x: x @ w,
            lambda w, x: x.reshape(-1, 6).mv(w).reshape(-1, 5),
            lambda w, x: torch.matmul(x[:, 0], w),
        ):
            self.check(converted(function, self.x, w=w), ["w"])

    def test_a_matrix_times_a_vector_of_each_example(self):
        function = lambda w, x: torch.stack([w.mv(row) for row in x[:, 0].unbind()])  # noqa: E731
        self.check(converted(function, self.x, w=nn.Parameter(drawn(3, 6))), ["w"])

    def test_a_bilinear_map(self):
        x = self.x[:, 0]
        swapped = lambda w, x: nn.functional.bilinear(x.tanh(), x, w)  # noqa: E731
        for target, shape in (
            (converted(lambda m, x: m(x, x.cos()), self.x, m=nn.Bilinear(6, 6, 3)), (6, 18)),
            (converted(swapped, x, m=nn.Parameter(drawn(3, 6, 6))), (6, 18)),
        ):
            self.assertLess(target.conversion_error, 1e-6)
            self.assertEqual([site.shape for site in target.sites.values()], [shape])


class CausalMasksTest(parameterized.TestCase):
    """Masks whose values torch's Transformer looks at, to tell whether they are causal."""

    @parameterized.parameters(
        lambda layers, x: layers(x, nn.Transformer.generate_square_subsequent_mask(5)),
        lambda layers, x: layers(x, nn.Transformer.generate_square_subsequent_mask(5).T),
        lambda layers, x: layers(x, torch.ones(5, 5, dtype=torch.bool).triu(1)),
    )
    def test_masks(self, function):
        options = {"d_model": 4, "nhead": 2, "dim_feedforward": 4, "batch_first": True}
        layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options), 1)
        own = nn.modules.transformer._detect_is_causal_mask
        target = converted(function, drawn(3, 5, 4), layers=layers)
        self.assertLess(target.conversion_error, 1e-6)
        self.assertIs(nn.modules.transformer._detect_is_causal_mask, own)


class FastPathTest(parameterized.TestCase):
    """Outputs of torch's attention that are others without gradients."""

    @parameterized.named_parameters(
        ("mask_of_floats", lambda layers, x: layers(x, -0.1 * torch.arange(25.0).reshape(5, 5))),
        (
            "padding",
            lambda layers, x: layers(
                x, src_key_padding_mask=torch.arange(5).expand(x.shape[:2]) > 2
            ),
        ),
    )
    def test_is_named(self, function):
        layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
        layers = nn.TransformerEncoder(layer, 2)

        def convert():
            return converted(function, drawn(3, 5, 4), layers=layers)

        with self.assertRaisesRegex(apd_jax.UserError, "fast path for attention.*boolean masks"):
            convert()
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            self.assertLess(convert().conversion_error, 1e-6)
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


class MovedWeightsTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda w, x: x @ w[torch.tensor([2, 0, 1])],
        lambda w, x: x @ w.index_select(1, torch.tensor([3, 0, 0])),
        lambda w, x: x @ w[torch.arange(2, -1, -1)],
        lambda w, x: torch.cat([x, x], dim=1) @ w.repeat(2, 1),
        lambda w, x: x @ w.tile(1, 2),
    )
    def test_moves(self, function):
        x = drawn(5, 3)
        target = converted(function, x, w=nn.Parameter(drawn(3, 4)))
        self.assertLess(target.conversion_error, 1e-6)
        self.assertEqual(target.sites["w"].kinds, ("product",))
        apd_jax.check_target(target, jnp.asarray(x.numpy()))


class TransposedConvolutionTest(parameterized.TestCase):
    """Of several groups, in which torchax mixes up the groups."""

    @parameterized.parameters(
        (nn.ConvTranspose1d, dict(groups=2), (4, 6, 7)),
        (nn.ConvTranspose1d, dict(groups=3, stride=2, bias=False), (4, 6, 7)),
        (nn.ConvTranspose2d, dict(groups=2, dilation=2, padding=1), (4, 6, 5, 4)),
        (nn.ConvTranspose2d, dict(groups=6, stride=2, output_padding=1), (4, 6, 5, 4)),
        (nn.ConvTranspose3d, dict(groups=3, stride=(2, 1, 2)), (4, 6, 3, 2, 3)),
    )
    def test_groups(self, kind, options, shape):
        module = kind(6, 12, 3, **options).eval()
        target = apd_jax.Target.from_torch(module, drawn(*shape))
        self.assertLess(target.conversion_error, 1e-6)
        (site,) = target.sites.values()
        groups = options["groups"]
        self.assertEqual(site.shape, (groups, 6 // groups * 3 ** (len(shape) - 2), 12 // groups))
        matrix = np.asarray(target.weights["weight"])
        changed = target.with_weights({"weight": jnp.asarray(matrix[::-1])})
        back = np.asarray(changed.weights["weight"])
        np.testing.assert_array_equal(back, matrix[::-1])
        x = jnp.asarray(drawn(*shape).numpy())
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(np.array(changed.params["weight"])))
            expected = module(drawn(*shape)).numpy()
        np.testing.assert_allclose(changed(x), expected, rtol=1e-4, atol=1e-5)


class IndicesTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda linear, x: torch.take_along_dim(linear(x), x.argsort(1), 1),
        lambda linear, x: linear(x).take_along_dim(x.argmax(-1, keepdim=True), dim=-1),
        lambda linear, x: linear(x)[:1].take_along_dim(x.argsort(-1), -1),
        lambda linear, x: linear(x) + torch.take_along_dim(linear(x), torch.tensor([3])),
        lambda linear, x: linear(x).gather(2, x.topk(2, dim=2).indices),
        lambda linear, x: linear(x)[:, 1:][:, :, torch.tensor([2, 0])],
        lambda linear, x: linear(x)[:, 0][:, [3, -1]] + linear(x)[..., 0, :2],
        lambda linear, x: linear(x) + linear.weight[1:][x.argsort(1)[..., 0]],
        lambda linear, x: (linear(x).mT @ x)[:, :][(..., *torch.triu_indices(4, 4))],
    )
    def test_chosen_by_index(self, function):
        target = converted(function, drawn(2, 3, 4), linear=nn.Linear(4, 4))
        self.assertLess(target.conversion_error, 1e-6)


class NamesOfLayersTest(absltest.TestCase):
    def test_padding_of_what_is_no_embedding(self):
        linear = nn.Sequential(nn.Linear(3, 4))
        linear.padding_idx = 1  # as the models of transformers have
        target = converted(lambda linear, x: linear(x), drawn(5, 3), linear=linear)
        self.assertLess(target.conversion_error, 1e-6)


class ChangedSlicesTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda y, x: y[:, 0].fill_(2.0),
        lambda y, x: y[:, 1:][:, 0].zero_(),
        lambda y, x: y[:, 0].masked_fill_(x[:, 0] > 0, 0.0),
        lambda y, x: y[..., 0].index_fill_(1, torch.tensor([1]), 3.0),
        lambda y, x: y[:, 0].mul_(2).add_(1),
        lambda y, x: y[:, 0].copy_(x[:, 1]),
        lambda y, x: y[:, 0].clamp_(min=0).div_(3),
        lambda y, x: y.fill_(1.0),
        lambda y, x: y[:, 1:].__setitem__(x[:, 1:] > 0, 0.0),
        lambda y, x: y[:, 1:].__setitem__((x > 0)[:, 1:], 0.0),
        lambda y, x: y[:, 0].__setitem__(x[:, 0, 0] > 0, x[0, 0]),
        lambda y, x: y[..., 1:].__setitem__((slice(None), torch.tensor([0, 2])), x[:, :2, :3]),
        lambda y, x: y[0].__setitem__(torch.tensor([2, 0]), 1.0),
    )
    def test_in_place(self, change):
        def function(linear, x):
            y = linear(x).clone()
            returned = change(y, x)
            whole = {"whole": y + linear(x)}
            return whole if returned is None else {**whole, "returned": returned}

        target = converted(function, drawn(2, 3, 4), linear=nn.Linear(4, 4))
        self.assertLess(target.conversion_error, 1e-6)


class EmbeddingBagTest(parameterized.TestCase):
    ids = torch.tensor([[1, 2, 2], [0, 3, 1], [2, 0, 0], [3, 3, 3]])

    functions = (
        lambda bag, x: bag(x),
        lambda bag, x: bag(x.reshape(-1), torch.arange(0, x.numel(), 3)),
        lambda bag, x: nn.functional.embedding_bag(
            x.reshape(-1),
            bag.weight,
            torch.arange(4 * len(x) + 1) // 4 * 3 + torch.arange(4 * len(x) + 1) % 4 // 2,
            mode=bag.mode,
            padding_idx=bag.padding_idx,
            include_last_offset=True,
        ).reshape(len(x), -1),  # three bags of one and two rows, and two empty ones
    )

    @parameterized.product(mode=("sum", "mean", "max"), function=functions)
    def test_bags(self, mode, function):
        bag = nn.EmbeddingBag(4, 6, mode=mode, padding_idx=3)
        self.check(converted(function, self.ids, bag=bag), self.ids)

    @parameterized.parameters(None, -4)
    def test_padding(self, padding):
        bag = nn.EmbeddingBag(4, 6, mode="mean", padding_idx=padding)
        self.check(converted(self.functions[-1], self.ids, bag=bag), self.ids)

    @parameterized.parameters(
        lambda bag, x, scales: bag(x, per_sample_weights=scales),
        lambda bag, x, scales: bag(
            x.reshape(-1), torch.arange(0, x.numel(), 3), per_sample_weights=scales.reshape(-1)
        ),
    )
    def test_scales(self, function):
        bag = nn.EmbeddingBag(4, 6, mode="sum", padding_idx=1)
        inputs = self.ids, drawn(4, 3)
        self.check(converted(function, *inputs, bag=bag), inputs)

    def check(self, target, inputs):
        self.assertLess(target.conversion_error, 1e-6)
        self.assertEqual(target.sites["bag.weight"].kinds, ("look-up",))
        apd_jax.check_target(target, jax.tree.map(lambda x: jnp.asarray(x.numpy()), inputs))


class KeptByTransformersTest(absltest.TestCase):
    """Tensors that transformers keeps in one cache for all modules of the process."""

    def test_a_function(self):
        utilities = pytest.importorskip("transformers.pytorch_utils")

        @utilities.compile_compatible_method_lru_cache(maxsize=2)
        def ramp(length):
            return torch.arange(length)

        module = Calling(lambda linear, x: linear(x) * ramp(4), linear=nn.Linear(3, 4)).eval()
        asked = utilities.is_torchdynamo_compiling
        for _ in range(2):
            target = apd_jax.Target.from_torch(module, drawn(5, 3))
            self.assertLess(target.conversion_error, 1e-6)
            self.assertIs(utilities.is_torchdynamo_compiling, asked)
            self.assertIs(type(ramp(4)), torch.Tensor)

    @pytest.mark.slow
    def test_models(self):
        transformers = pytest.importorskip("transformers")
        common = dict(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
        relative = dict(common, use_relative_position_bias=True)
        inputs = {"pixel_values": drawn(3, 3, 16, 16)}
        for model, config in (
            (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**common)),
            (transformers.BeitModel, transformers.BeitConfig(**relative)),
            (transformers.Data2VecVisionModel, transformers.Data2VecVisionConfig(**relative)),
        ):
            with self.subTest(model.__name__):
                module = model(config).eval()
                target = apd_jax.Target.from_torch(module, inputs, "last_hidden_state")
                self.assertLess(target.conversion_error, 1e-5)
                with torch.no_grad():
                    expected = module(**inputs).last_hidden_state.numpy()
                found = target({"pixel_values": jnp.asarray(inputs["pixel_values"].numpy())})
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
