"""The browser's data against literal definitions: products, decompositions, rounding errors."""

import base64
import json
import tracemalloc
from unittest import mock

import numpy as np
import report_example
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from apd_jax.report import browser, packed_arrays


def unpack(packed):
    """Array of a packed dict, with its scale applied."""
    dtype = np.dtype(packed["dtype"]).newbyteorder("<")
    array = np.frombuffer(base64.b64decode(packed["data"]), dtype).reshape(packed["shape"])
    if "scale" not in packed:
        return array
    scale = unpack(packed["scale"])
    return array * scale.reshape(scale.shape + (1,) * (array.ndim - scale.ndim))


def reconstruct(site):
    """[C, rows, columns] as the page computes it."""
    if site["form"] == "whole":
        return unpack(site["weights"])
    return np.einsum("cri,crj->cij", unpack(site["left"]), unpack(site["right"]))


class FactorSvdTest(parameterized.TestCase):
    @parameterized.parameters((7, 3, 5, 2), (5, 6, 2, 2), (4, 2, 9, 4), (3, 1, 3, 1), (2, 4, 3, 9))
    def test_equals_svd_of_the_product(self, d_in, rank, d_out, keep):
        rng = np.random.default_rng(0)
        u, v = rng.normal(size=(3, d_in, rank)), rng.normal(size=(3, rank, d_out))
        left, values, right = browser.factor_svd(u, v, keep)
        smallest = min(d_in, rank, d_out)
        expected = np.linalg.svd(u @ v, compute_uv=False)[:, :smallest]
        np.testing.assert_allclose(values, expected, atol=1e-12)
        kept = min(keep, smallest)
        self.assertEqual(left.shape, (3, d_in, kept))
        self.assertEqual(right.shape, (3, kept, d_out))
        for c in range(3):
            full = np.linalg.svd(u[c] @ v[c], full_matrices=False)
            best = (full[0][:, :kept] * full[1][:kept]) @ full[2][:kept]
            np.testing.assert_allclose((left[c] * values[c, :kept]) @ right[c], best, atol=1e-12)


class QuantiseTest(parameterized.TestCase):
    @given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-1e6, 1e6)))
    @settings(deadline=None, max_examples=50)
    def test_error_is_at_most_half_a_step(self, array):
        for dtype, largest in (("int8", 127), ("int16", 32767)):
            packed = packed_arrays.quantise(array, dtype, (1,))
            peak = np.abs(array).max(axis=1, keepdims=True)
            error = np.abs(unpack(packed) - array)
            self.assertTrue(np.all(error <= peak / largest * 0.5 + 1e-6 * peak + 1e-30))

    def test_zeros_stay_zero(self):
        np.testing.assert_array_equal(
            unpack(packed_arrays.quantise(np.zeros((2, 3)), "int8", (1,))), 0.0
        )


class BrowserDataTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.arrays = report_example.browser_arrays()

    def data(self, **changes):
        data = browser.browser_data(**{**self.arrays, **changes})
        self.assertEqual(json.loads(json.dumps(data, allow_nan=False)), data)
        return data, {site["name"]: site for site in data["sites"]}

    def test_small_site_is_embedded_whole(self):
        _, sites = self.data()
        u, v = self.arrays["factors"]["linear1"]
        self.assertEqual(sites["linear1"]["form"], "whole")
        np.testing.assert_allclose(reconstruct(sites["linear1"]), u @ v, atol=1e-3)
        target = self.arrays["target_weights"]["linear1"]
        np.testing.assert_allclose(unpack(sites["linear1"]["target"]), target, atol=1e-3)

    def test_large_site_is_embedded_as_triplets(self):
        _, sites = self.data()
        site = sites["layers_0/mlp_in"]
        u, v = self.arrays["factors"]["layers_0/mlp_in"]
        self.assertEqual(site["form"], "triplets")
        literal = u @ v
        error = np.abs(reconstruct(site) - literal).max() / np.abs(literal).max()
        self.assertLess(error, 0.02)
        np.testing.assert_allclose(unpack(site["explained"]), 1.0, atol=1e-6)

    def test_triplets_fit_the_bytes_and_state_what_they_hold(self):
        u, v = self.arrays["factors"]["layers_0/mlp_in"]
        limit = 6 * 320 + 100
        with mock.patch.object(browser, "_MAX_SITE_BYTES", limit):
            _, sites = self.data()
        site = sites["layers_0/mlp_in"]
        self.assertEqual(site["left"]["shape"], [6, 1, 300])
        packed = sum(len(base64.b64decode(site[side]["data"])) for side in ("left", "right"))
        self.assertLessEqual(packed, limit)
        values = np.linalg.svd(u @ v, compute_uv=False)[:5]
        expected = values[:, 0] ** 2 / np.sum(values**2, axis=1)
        np.testing.assert_allclose(unpack(site["explained"])[:5], expected, rtol=1e-5)
        self.assertLess(expected.max(), 1.0)

    def test_component_without_weights(self):
        _, sites = self.data()
        for site in sites.values():
            np.testing.assert_array_equal(reconstruct(site)[5], 0.0)
            np.testing.assert_array_equal(unpack(site["singular_values"])[5], 0.0)
        self.assertEqual(unpack(sites["layers_0/mlp_in"]["explained"])[5], 1.0)

    def test_view_changes_the_basis_but_not_the_singular_values(self):
        rng = np.random.default_rng(1)
        left, right = rng.normal(size=(7, 300)), rng.normal(size=(20, 5))
        views = {"layers_0/mlp_in": browser.View("feature", "neuron", left, right)}
        _, plain = self.data()
        _, viewed = self.data(views=views)
        site = viewed["layers_0/mlp_in"]
        u, v = self.arrays["factors"]["layers_0/mlp_in"]
        shown = left @ (u @ v) @ right
        self.assertEqual(
            (site["rows"], site["columns"], site["shape"]), ("feature", "neuron", [7, 5])
        )
        np.testing.assert_allclose(reconstruct(site), shown, atol=1e-4 * np.abs(shown).max())
        target = left @ self.arrays["target_weights"]["layers_0/mlp_in"] @ right
        np.testing.assert_allclose(unpack(site["target"]), target, atol=1e-4 * np.abs(target).max())
        self.assertEqual(site["singular_values"], plain["layers_0/mlp_in"]["singular_values"])

    def test_tables_survive(self):
        data, _ = self.data()
        for name in (
            "attributions",
            "topk_mask",
            "target_outputs",
            "topk_outputs",
            "without",
            "active_share",
        ):
            expected = np.asarray(self.arrays[name], np.float32)
            np.testing.assert_array_equal(unpack(data[name]), expected, err_msg=name)
        self.assertEqual(data["represented"], [[0], [1], [2], [], [], []])
        self.assertEqual((data["num_components"], data["num_features"]), (6, 4))

    def test_one_component_one_feature(self):
        one = np.ones((1, 1))
        data = browser.browser_data(
            factors={"w": (np.ones((1, 1, 1)), np.ones((1, 1, 1)))},
            target_weights={"w": one},
            attributions=one,
            topk_mask=one > 0,
            target_outputs=one,
            topk_outputs=one,
            without=one,
            active_share=np.ones(1),
            represented=[[0]],
            views={},
            seed=None,
            inputs="it is 1",
        )
        self.assertAlmostEqual(reconstruct(data["sites"][0]).item(), 1.0, places=6)

    def test_memory_stays_far_below_the_matrices(self):
        count, d_in, d_out, rank = 40, 300, 400, 2
        rng = np.random.default_rng(0)
        u, v = rng.normal(size=(count, d_in, rank)), rng.normal(size=(count, rank, d_out))
        arrays = dict(self.arrays, views={})
        arrays |= {
            "factors": {"w": (u, v)},
            "target_weights": {"w": np.zeros((d_in, d_out))},
            "attributions": np.zeros((4, count)),
            "without": np.zeros((4, count)),
            "topk_mask": np.zeros((4, count), bool),
            "active_share": np.zeros(count),
            "represented": [[]] * count,
        }
        tracemalloc.start()
        browser.browser_data(**arrays)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        self.assertLess(peak, count * d_in * d_out * 8 / 4)

    def test_two_layers_of_200_components_stay_small(self):
        count, rng = 200, np.random.default_rng(0)
        shapes = {"in0": (1000, 25), "out0": (25, 1000), "in1": (1000, 25), "out1": (25, 1000)}
        factors = {
            name: (rng.normal(size=(count, d_in, 3)), rng.normal(size=(count, 3, d_out)))
            for name, (d_in, d_out) in shapes.items()
        }
        data = browser.browser_data(
            factors=factors,
            target_weights={name: np.ones(shape) for name, shape in shapes.items()},
            attributions=np.ones((100, count)),
            topk_mask=np.ones((100, count), bool),
            target_outputs=np.ones((100, 100)),
            topk_outputs=np.ones((100, 100)),
            without=np.ones((100, count)),
            active_share=np.ones(count),
            represented=[[]] * count,
            views={},
            seed=None,
            inputs="it is 1",
        )
        self.assertLess(len(json.dumps(data)), 3_500_000)

    @parameterized.parameters(
        ("represented", [[4], [], [], [], [], []], "names features .4., expected 0..3"),
        ("views", {"nowhere": browser.View()}, "unknown sites .'nowhere'."),
    )
    def test_wrong_argument(self, name, value, message):
        with self.assertRaisesRegex(ValueError, message):
            self.data(**{name: value})


if __name__ == "__main__":
    absltest.main()
