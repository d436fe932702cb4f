"""Small torch modules that are made of a function."""

import pytest

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

import apd_jax  # noqa: E402


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Calling(torch.nn.Module):
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
