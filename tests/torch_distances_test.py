"""torch's operators whose derivatives are NaN in torchax where torch's are finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from torch import nn  # noqa: E402
from torch_calling import converted, drawn  # noqa: E402


class DistancesTest(parameterized.TestCase):
    @parameterized.parameters(
        lambda y: nn.functional.normalize(y, dim=-1),
        lambda y: y / y.norm(dim=-1, keepdim=True).clamp(min=1e-6),
        lambda y: y.norm(p=3, dim=-1),
        lambda y: torch.linalg.norm(y, dim=(1, 2)),
        lambda y: nn.functional.cosine_similarity(y, y.flip(1), dim=-1),
        lambda y: torch.cdist(y, y),
        lambda y: torch.cdist(y, y, p=1) + torch.cdist(y, y, p=3),
        lambda y: torch.cdist(y, 2 * y.repeat(1, 9, 1)),
        lambda y: torch.cdist(y, 2 * y, compute_mode="use_mm_for_euclid_dist"),
        lambda y: y.std(-1) + y.std(dim=-1, correction=0),
        lambda y: torch.std_mean(y, (1, 2), unbiased=False, keepdim=True),
        lambda y: y.std() + 0 * y,
        lambda y: nn.functional.softplus(1000 * y),
        lambda y: nn.functional.softplus(y, beta=3.0, threshold=1.0),
        lambda y: torch.atan2(y, y.flip(1)),
        lambda y: torch.sinc(y),
    )
    def test_derivatives_are_those_of_torch(self, function):
        x = drawn(4, 3, 6)
        x[1, 2:], x[0] = 0, 0
        linear = nn.Linear(6, 6, bias=False)
        target = converted(lambda part, x: function(part(x)), x, linear=linear)
        self.assertLess(target.conversion_error, 1e-6)

        def total(outputs):
            leaves = outputs if isinstance(outputs, tuple) else (outputs,)
            return sum((leaf * (leaf + 1)).sum() for leaf in leaves)

        expected = torch.autograd.grad(total(function(linear(x))), linear.weight)[0].numpy()
        self.assertTrue(np.isfinite(expected).all())
        gradient = jax.grad(lambda params: total(target.apply_fn(params, jnp.asarray(x.numpy()))))
        found = gradient(target.params)["linear.weight"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


if __name__ == "__main__":
    absltest.main()
