"""torch's operators on windows of images, where torchax's own differ or fail."""

import pytest
from absl.testing import absltest, parameterized

torch = pytest.importorskip("torch", reason="needs apd_jax[torch]: bash launch/test_torch.sh")

from torch import nn  # noqa: E402
from torch_calling import converted, drawn  # noqa: E402

IMAGES = drawn(2, 3, 8, 9)


def check(function, images=IMAGES):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[images.ndim - 3]
    target = converted(lambda conv, x: function(conv(x)), images, conv=kind(3, 4, 1))
    assert target.conversion_error < 1e-5


class AveragePoolTest(parameterized.TestCase):
    @parameterized.parameters(
        dict(kernel_size=3, stride=2, ceil_mode=True),
        dict(kernel_size=3, stride=2, ceil_mode=True, padding=1),
        dict(kernel_size=3, stride=2, ceil_mode=True, padding=1, count_include_pad=False),
        dict(kernel_size=2, stride=3, ceil_mode=True, padding=1),
        dict(kernel_size=(3, 2), stride=(2, 3), padding=(0, 1), ceil_mode=True),
        dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, divisor_override=4),
        dict(kernel_size=2),
    )
    def test_windows_at_the_edge(self, **options):
        pool = nn.AvgPool2d(**options)
        target = converted(lambda a, b, x: b(a(x)), drawn(2, 3, 8, 9), a=nn.Conv2d(3, 4, 1), b=pool)
        self.assertLess(target.conversion_error, 1e-6)

    @parameterized.parameters((nn.AvgPool1d, 1), (nn.AvgPool3d, 3))
    def test_axes(self, kind, axes):
        pool, shape = kind(2, 3, 1, True), (2, 3, 5, 6, 7)[: axes + 2]
        target = converted(
            lambda a, b, x: b(a(x)), drawn(*shape), a=nn.Linear(shape[-1], 6), b=pool
        )
        self.assertLess(target.conversion_error, 1e-6)


class OtherWindowsTest(parameterized.TestCase):
    @parameterized.parameters(
        (nn.AdaptiveMaxPool1d(1), drawn(2, 3, 7)),
        (nn.AdaptiveMaxPool1d(4), drawn(2, 3, 7)),
        (nn.AdaptiveMaxPool2d(1), IMAGES),
        (nn.AdaptiveMaxPool2d((3, 4)), IMAGES),
        (nn.AdaptiveMaxPool2d((None, 12)), IMAGES),
        (nn.AdaptiveMaxPool3d((2, 1, 3)), drawn(2, 3, 4, 2, 5)),
        (lambda y: nn.functional.adaptive_max_pool2d(y, (5, 4), return_indices=True), IMAGES),
    )
    def test_adaptive_maxima(self, function, images):
        check(function, images)

    @parameterized.product(mode=("bilinear", "bicubic"), size=((5, 4), (12, 4), 16))
    def test_images_of_another_size(self, mode, size):
        change = nn.functional.interpolate
        check(lambda y: change(y, size=size, mode=mode, antialias=True))
        check(lambda y: change(y, size=size, mode=mode))

    @parameterized.parameters(0.4, ((0.7, 1.3),))
    def test_images_scaled_by_a_factor(self, scale):
        change = nn.functional.interpolate
        check(lambda y: change(y, scale_factor=scale, mode="bicubic", antialias=True))

    def test_windows_put_together_and_grids(self):
        def folded(y):
            windows = nn.functional.unfold(y, 3, padding=1)
            return nn.functional.fold(windows, y.shape[2:], 3, padding=1)

        def turned(y):
            matrix = torch.tensor([[0.8, -0.3, 0.1], [0.3, 0.8, 0.0]]).expand(len(y), 2, 3)
            grid = nn.functional.affine_grid(matrix, y.shape, align_corners=False)
            return nn.functional.grid_sample(y, grid, align_corners=False)

        check(folded)
        check(turned)


if __name__ == "__main__":
    absltest.main()
