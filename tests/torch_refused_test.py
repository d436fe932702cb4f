"""torch modules that `Target.from_torch` refuses, each by the name of what is wrong."""

import functools
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, prune  # noqa: E402

import apd_jax  # noqa: E402
from apd_jax.sites.adapters import torch as adapter  # noqa: E402

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
OUTSIDE = torch.ones(4)


class Then(nn.Module):
    """A linear layer and a function."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.linear(x))


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.then = nn.Linear(4, 4), Then(function)

    def forward(self, x):
        return self.then(self.first(x))


def _old(function):
    """A module of an older way of torch's, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(nn.Linear(4, 4))


def _partly_training():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    module[1].train()
    return module


def _integers():
    module = Then(lambda y: y)
    module.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    return module


def _with_a_generator():
    module = Then(lambda y: y)
    module.numbers = (i for i in range(3))
    return module


def _sparse():
    module = Then(lambda y: y)
    module.links = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    return module


def _broken():
    module = Then(lambda y: y)
    module.linear.bias.data[1] = torch.inf
    return module


class Counting(Then):
    """A layer that changes its buffer at each call."""

    def __init__(self):
        super().__init__(lambda y: y)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x) + self.calls


class Rounded(torch.autograd.Function):
    """Straight-through rounding."""

    @staticmethod
    def forward(ctx, y):
        return y.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Product(torch.autograd.Function):
    """A product whose backward is wrong."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0]


class Square(Product):
    """Whose backward is right."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2 * ctx.saved_tensors[0]


class Jump(torch.autograd.Function):
    """A JumpReLU; the derivative by its threshold is a surrogate."""

    @staticmethod
    def forward(ctx, y, threshold):
        ctx.save_for_backward(y, threshold)
        return y * (y > threshold)

    @staticmethod
    def backward(ctx, gradient):
        y, threshold = ctx.saved_tensors
        near = ((y - threshold).abs() < 1).float()
        return gradient * (y > threshold), -threshold * near * gradient


def _with_buffer(tensor):
    module = Then(lambda y: y)
    module.register_buffer("kept", tensor)
    return module


class Hooked(Then):
    """Whose hook holds the module itself."""

    def __init__(self):
        super().__init__(lambda y: y)
        self.seen = {}
        self.linear.register_forward_hook(lambda part, x, y: self.seen.update(y=y))

    def forward(self, x):
        return self.linear(x) * self.seen["y"]


def _half_precision(y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (y @ torch.ones(4, 4)).float()


def _quantised(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def _halved(y):
    y = y.clone()
    y.chunk(2, dim=-1)[0].mul_(0.5)
    return y


@functools.lru_cache
def _ramp(length):
    return torch.arange(length)


@functools.lru_cache
def _ramp_of_its_own(length, kind):
    return torch.arange(length)


MODULES = {
    "no_module": (lambda: lambda x: x, "needs a torch.nn.Module, got a function"),
    "training": (lambda: nn.Linear(4, 4).train(), r"training mode \(Linear\).*module.eval\(\)"),
    "partly_training": (_partly_training, r"training mode \(1\)"),
    "weight_norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
        r"^0.weight is not a.*remove_parametrizations\(module.get_submodule\('0'\), 'weight'\)",
    ),
    "old_weight_norm": (lambda: _old(nn.utils.weight_norm), "^weight is not a parameter"),
    "old_spectral_norm": (lambda: _old(nn.utils.spectral_norm), "^weight is not a parameter"),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=2),
        "^weight is not a parameter.*prune.remove",
    ),
    "half": (lambda: nn.Linear(4, 4).bfloat16(), 'weight is bfloat16.*dtype="float32"'),
    "double": (lambda: nn.Linear(4, 4).double(), 'weight is float64.*dtype="float32"'),
    "integers": (_integers, "codes is int8, not floating"),
    "sparse": (_sparse, r"links is sparse \(torch.sparse_coo\).*to_dense"),
    "quantised_buffer": (lambda: _with_buffer(_quantised(X)), "kept is torch.qint8.*dequantize"),
    "float8_buffer": (
        lambda: _with_buffer(X.to(torch.float8_e4m3fn)),
        "^kept: expected numbers.*float8_e4m3fn.*float",
    ),
    "not_finite": (_broken, "linear.bias holds NaN or infinity"),
    "changing": (Counting, "differ between two runs .* changes its buffers at each call"),
    "no_numbers": (lambda: nn.Linear(4, 4, device="meta"), "weight has no numbers"),
    "lazy": (lambda: nn.LazyLinear(4), "weight has no numbers"),
    "no_parameters": (lambda: nn.ReLU(), "ReLU has no parameters"),
    "no_copy": (_with_a_generator, "Then can't be copied"),
    "missing_operator": (
        lambda: Inner(torch.special.airy_ai),
        r"operator aten::special_airy_ai, used in then \(Then\), is missing",
    ),
    "branch": (
        lambda: Inner(lambda y: y if y.sum() > 0 else -y),
        r"stops in then \(Then\) .*must not depend on the values",
    ),
    "number_of_rows": (
        lambda: Inner(lambda y: y[y > 0]),
        r"stops in then \(Then\).*y\[y > 0\].*must not depend",
    ),
    "number_of_python": (lambda: Inner(lambda y: y * y.sum().item()), r"\.item\(\).*depend on the"),
    "numpy": (lambda: Inner(lambda y: y * float(y.numpy().sum())), r"\.numpy\(\).*depend on the v"),
    "list": (lambda: Inner(lambda y: y * sum(y[0].tolist())), r"\.tolist\(\).*depend on the v"),
    "from_numpy": (
        lambda: Inner(lambda y: y + torch.from_numpy(np.ones(4, "float32"))),
        r"stops in then \(Then\) at a tensor .*register_buffer.*made by torch.from_numpy",
    ),
    "cached": (
        lambda: Inner(lambda y: y + _ramp(4)),
        r"neither belongs to the module .*register_buffer.*kept in a cache \(functools",
    ),
    "cached_in_jax": (
        lambda: Inner(lambda y: y + _ramp_of_its_own(4, str(type(y)))),
        "a tensor kept in a cache.*cache_clear",
    ),
    "outside": (lambda: Inner(lambda y: y + OUTSIDE), "neither belongs to the module"),
    "array_of_numpy": (lambda: Inner(lambda y: y + np.ones(4, "float32")), "NumPy .*as_tensor"),
    "old_constructor": (
        lambda: Inner(lambda y: y + torch.Tensor([1, 2, 3, 4])),
        "torch.Tensor, torch.v",
    ),
    "random": (
        lambda: Inner(lambda y: y + torch.rand_like(y)),
        "differ between two runs .*draws random numbers in eval mode .draw only if",
    ),
    "random_and_nan": (lambda: Inner(nn.functional.gumbel_softmax), "draws random numbers in eval"),
    "dropout": (lambda: Inner(nn.functional.dropout), "draws random numbers in eval mode"),
    "seed_of_its_own": (
        lambda: Inner(lambda y: y + torch.rand(4, generator=torch.Generator().manual_seed(0))),
        "differs from torch's own by .*from a seed of its own",
    ),
    "change_through_a_view": (
        lambda: Inner(_halved),
        "in place through a view of it",
    ),
    "batch_statistics": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        r"^1 \(BatchNorm1d\) has track_running_stats=False",
    ),
    "straight_through": (
        lambda: Inner(Rounded.apply),
        r"derivative by first.weight is not torch's: Rounded .*detach\(\)",
    ),
    "straight_through_data": (
        lambda: Inner(lambda y: y + (y.round() - y).data),
        r"derivative by first.weight is not torch's: forward stops gradients .*\.data.*detach\(\)",
    ),
    "straight_through_no_grad": (
        lambda: Inner(lambda y: y + torch.no_grad()(lambda y: y.round() - y)(y)),
        r"derivative by first.weight is not torch's: forward stops .*torch.no_grad\(\)",
    ),
    "hook_that_holds_the_module": (
        Hooked,
        r"KeyError.*hook of linear holds a Hooked that was not copied: .*\(self.keep\)",
    ),
    "other_backward": (
        lambda: Inner(lambda y: {"a": Square.apply(y), "b": Product.apply(y)}),
        "is not torch's: Product, Square ",
    ),
    "half_precision": (lambda: Inner(_half_precision), "leave out torch.autocast"),
    "keys_of_two_kinds": (lambda: Inner(lambda y: {0: y, "b": y}), "keys can't be sorted.*text"),
    "no_tensor": (lambda: Inner(lambda y: {"a": y, "b": None}), "returns a NoneType.*output="),
}


class RefusedTest(parameterized.TestCase):
    @parameterized.named_parameters((name, *entry) for name, entry in MODULES.items())
    def test_module(self, make, message):
        module = make()
        if isinstance(module, nn.Module) and "training" not in message:
            module = module.eval()
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.Target.from_torch(module, X)

    @parameterized.parameters(
        ({"inputs": torch.ones(3, 5)}, "Linear itself can't be run.*RuntimeError"),
        ({"inputs": torch.tensor(1.0)}, "inputs must be what forward takes"),
        ({"inputs": {"input": X, "flag": True}}, "inputs must be what forward takes.*keyword"),
        ({"inputs": (X, torch.ones(2))}, "examples|batch"),
        ({"inputs": X, "output": "logits"}, "output='logits': forward returns a Tensor: leave"),
        ({"inputs": X, "output": 0}, "output=0: forward returns a Tensor: leave output= out"),
        ({"inputs": X, "output": "T"}, "output='T': forward returns a Tensor: leave output= out"),
        ({"inputs": X, "output": True}, "output=True: forward returns a Tensor"),
        ({"inputs": X, "output": lambda y: y.logits}, "^output= can't be taken.*'logits'"),
        ({"inputs": np.array([["a"] * 4] * 3)}, "expected numbers, got an array of <U1"),
        ({"inputs": np.array([[1, "a"], [2, 3]], object)}, "expected numbers.* of object"),
        ({"inputs": np.array([["2020-01-01"]], "M8[D]")}, "expected numbers.*datetime64"),
        ({"inputs": np.ma.masked_less(X.numpy(), 0)}, "masked array.*filled"),
        ({"inputs": X.to_sparse()}, "expected numbers.*sparse_coo.*to_dense"),
        ({"inputs": torch.nested.nested_tensor([X[0], X[1, :2]])}, "nested.*to_padded_tensor"),
        ({"inputs": np.array([[-(2**63)] * 4] * 3)}, "-9223372036854775808, which does not fit"),
        ({"inputs": X, "dtype": "float16"}, "dtype must be one of .*'float32'"),
        ({"inputs": X, "sites": "nothing"}, "no parameter fits 'nothing'.*weight"),
    )
    def test_arguments(self, options, message):
        with self.assertRaisesRegex(apd_jax.UserError, message):
            apd_jax.Target.from_torch(nn.Linear(4, 4).eval(), **options)

    @parameterized.parameters(
        (lambda: torch.jit.trace(nn.Linear(4, 4).eval(), X),),
        (lambda: torch.export.export(nn.Linear(4, 4).eval(), (X,)).module(),),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 4))).eval(),),
    )
    def test_programs_that_torch_made_of_a_module(self, make):
        with (
            warnings.catch_warnings(),
            self.assertRaisesRegex(
                apd_jax.UserError,
                "torch.jit or torch.export.*pass the module that it was made from",
            ),
        ):
            warnings.simplefilter("ignore")
            apd_jax.Target.from_torch(make(), X)

    @parameterized.parameters(
        (Square.apply, False),
        (lambda y: y + (y.round() - y).detach(), True),
    )
    def test_backward_passes_that_are_kept(self, function, straight):
        module = Inner(function).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        target = apd_jax.Target.from_torch(module, X)
        self.assertLess(target.conversion_error, 1e-6)
        self.assertFalse(any(parameter.requires_grad for parameter in module.parameters()))
        x = jnp.asarray(X.numpy())
        found = jax.grad(lambda p: jnp.sum(target.apply_fn(p, x)))(target.params)
        for parameter in module.parameters():
            parameter.requires_grad_()
        outputs = module.then.linear(module.first(X)) if straight else module(X)
        outputs.sum().backward()
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-5)

    @torch.inference_mode()
    def test_a_backward_pass_in_inference_mode(self):
        with self.assertRaisesRegex(apd_jax.UserError, "is not torch's: Product"):
            apd_jax.Target.from_torch(Then(Product.apply).eval(), X)

    def test_only_derivatives_by_sites_are_compared(self):
        class Jumping(Inner):
            def forward(self, x):
                return self.then(Jump.apply(self.first(x), self.threshold))

        class Rounding(Inner):
            def forward(self, x):
                return self.then(Rounded.apply(self.first(x)))

        module = Jumping(lambda y: y).eval()
        module.threshold = nn.Parameter(torch.full((4,), 0.1))
        self.assertLen(apd_jax.Target.from_torch(module, X).sites, 2)
        module = Rounding(lambda y: y).eval()
        self.assertLen(apd_jax.Target.from_torch(module, X, sites="then.linear").sites, 1)
        with self.assertRaisesRegex(apd_jax.UserError, "by first.weight is not torch's: Rounded"):
            apd_jax.Target.from_torch(module, X)

    def test_a_part_that_torch_runs_without_gradients(self):
        class Frozen(Inner):
            def forward(self, x):
                with torch.no_grad():
                    hidden = self.first(x)
                return self.then(hidden)

        target = apd_jax.Target.from_torch(Frozen(lambda y: y).eval(), X)
        self.assertLen(target.sites, 2)
        self.assertLess(target.conversion_error, 1e-6)

    def test_an_error_of_another_kind_is_told_without_advice(self):
        target = apd_jax.Target.from_torch(nn.Embedding(4, 3).eval(), torch.ones(3, 2).long())
        with self.assertRaisesRegex(apd_jax.UserError, r"must have an integer type\)*$"):
            target.at(np.ones((3, 2), np.float32))(np.ones((3, 2), np.float32))

    def test_a_batch_size_that_is_baked_in(self):
        module = Then(lambda y: y + torch.zeros(2, 1)).eval()
        with self.assertRaisesRegex(apd_jax.UserError, "on a batch of 3 .*RuntimeError.* size"):
            apd_jax.Target.from_torch(module, X[:2])
        self.assertLen(apd_jax.Target.from_torch(nn.Linear(4, 4).eval(), X[:2]).sites, 1)

    def test_an_output_without_a_batch_and_valid(self):
        module = Then(lambda y: {"loss": y.mean(), "logits": y}).eval()
        everything = lambda batch: torch.ones(len(batch))  # noqa: E731
        for output in (None, "loss"):
            with self.assertRaisesRegex(apd_jax.UserError, r"\[3, ...\].*output \[\]: .*output="):
                apd_jax.Target.from_torch(module, X, output, valid=everything)
        apd_jax.Target.from_torch(module, X, "logits", valid=everything)

    @parameterized.parameters(
        (lambda: nn.LSTM(4, 3), r"the module \(LSTM\)"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 3)), r"1 \(GRU\)"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), r"self_attn \(MultiheadAttention\)"),
    )
    def test_positions_before_the_batch(self, make, message):
        x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
        output = None if "MultiheadAttention" in message else 0
        with self.assertRaisesRegex(apd_jax.UserError, f"^{message} has batch_first=False"):
            apd_jax.Target.from_torch(make().eval(), x, output)

    def test_positions_before_the_batch_that_forward_puts_there(self):
        class Exchanged(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.RNN(4, 3)

            def forward(self, x):
                return self.layers(x.transpose(0, 1))[0].transpose(0, 1)

        x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
        self.assertLen(apd_jax.Target.from_torch(Exchanged().eval(), x).sites, 2)

    def test_what_cannot_be_copied_into_another_precision(self):
        module = Then(lambda y: y).eval()
        module.lock = threading.Lock()
        with self.assertRaisesRegex(apd_jax.UserError, "Then can't be copied.*lock"):
            apd_jax.Target.from_torch(module, X, dtype="float32")
        with self.assertRaisesRegex(apd_jax.UserError, "Then can't be copied.*lock"):
            adapter.restored(module, {"dtype": "float32"})

    def test_slice_of_a_container_in_eval_mode_is_accepted(self):
        layers = nn.Sequential(nn.Tanh(), nn.Linear(4, 3)).eval()[1:]
        self.assertTrue(layers.training)  # of the container alone, which is the same in both modes
        self.assertLen(apd_jax.Target.from_torch(layers, X).sites, 1)

    def test_quantised(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.ao.quantization.quantize_dynamic(
                nn.Sequential(nn.Linear(4, 4)).eval(), {nn.Linear}, dtype=torch.qint8
            )
        with self.assertRaisesRegex(apd_jax.UserError, "weights of 0 .* are packed"):
            apd_jax.Target.from_torch(module, X)


if __name__ == "__main__":
    absltest.main()
