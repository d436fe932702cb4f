"""torch's operators on JAX arrays where torchax's own differ, fail, or hide a weight."""

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")


from torch import nn  # noqa: E402

import apd_jax  # noqa: E402


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Calling(nn.Module):
    """Parts, parameters, and a function of them and the inputs."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.names = function, list(parts)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(*(getattr(self, name) for name in self.names), *inputs)


def converted(function, *inputs, **parts):
    """The target of such a module."""
    inputs = inputs[0] if len(inputs) == 1 else inputs
    return apd_jax.Target.from_torch(Calling(function, **parts).eval(), inputs)


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
