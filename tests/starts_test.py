"""The start from the target's own weights, on networks whose parts are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from apd_jax.components import init_components
from apd_jax.data.sparse_features import SparseFeatures
from apd_jax.errors import UserError
from apd_jax.objective.objective import Objective
from apd_jax.runtime import loop
from apd_jax.sites import Target
from apd_jax.studies.gated_functions import measures
from apd_jax.studies.gated_functions.network import GatedFunctions, owners
from apd_jax.training.config import Settings
from apd_jax.training.initialisation import STARTS, groups
from apd_jax.training.refine.rules import Rules
from apd_jax.training.trainer import Trainer

pytestmark = pytest.mark.slow


def _started(target, x, num_components, rank=None, start="partitioned", rule=None):
    components = init_components(
        jax.random.key(0), target, num_components=num_components, rank=rank
    )
    make = functools.partial(STARTS[start], rule or Objective())
    return jax.jit(make)(target, x, components)


def _map(weight):
    """The target `x W`."""
    example = jax.ShapeDtypeStruct((2, weight.shape[0]), jnp.float32)
    return Target(lambda params, x: x @ params["w"], {"w": jnp.asarray(weight)}, inputs=example)


class GroupsTest(absltest.TestCase):
    def test_lines(self):
        """Two orthogonal lines, a sign on either, and examples between them."""
        signatures = jnp.array([[1.0, 0], [-2, 0], [3, 0], [0, 1], [0, -1], [0, 5], [1, 1]])
        members, used = groups.group_lines(signatures, jnp.ones(7), 2)
        self.assertTrue(used.all())
        members = np.asarray(members)
        first = members[0].argmax()
        np.testing.assert_array_equal(members[:3].argmax(axis=1), first)
        np.testing.assert_array_equal(members[3:6].argmax(axis=1), 1 - first)
        self.assertTrue((members[:6].max(axis=1) > 0.05).all())
        self.assertLess(members[6].max(), 1e-4)  # as near to one as to the other

    def test_examples_of_no_weight_count_for_nothing(self):
        signatures = jnp.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
        members, _ = groups.group_lines(signatures, jnp.array([1.0, 1, 0, 0]), 2)
        np.testing.assert_array_equal(members[2:], 0.0)

    def test_groups_of_few_are_not_used(self):
        """Two crowds and what lies between them: the third place stays empty."""
        between = np.random.default_rng(0).normal(size=(3, 2))
        crowds = np.repeat(np.eye(2), 40, axis=0)
        signatures = jnp.asarray(np.concatenate([crowds, between]), jnp.float32)
        members, used = groups.group_lines(signatures, jnp.ones(83), 4, 0.2)
        self.assertEqual(np.sort(used).tolist(), [False, False, True, True])
        np.testing.assert_array_equal(members[:, ~used], 0)
        self.assertEqual(len(set(members[:80].argmax(axis=1).tolist())), 2)


class PartsTest(absltest.TestCase):
    def test_rows_of_a_map(self):
        """Of sparse inputs the parts are the rows, one a component."""
        weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        x = SparseFeatures(4, 0.05)(jax.random.key(1), 8192)
        (factors,) = _started(_map(weight), x, 4, rank=1).values()
        pieces = np.asarray(factors.matrices())
        order = np.linalg.norm(pieces, axis=2).argmax(axis=1)
        self.assertLen(set(order.tolist()), 4)
        for piece, row in zip(pieces, order, strict=True):
            expected = np.zeros_like(piece)
            expected[row] = weight[row]
            np.testing.assert_allclose(piece, expected, atol=0.05)

    def test_full_rank_parts_add_up(self):
        weight = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
        x = jax.random.normal(jax.random.key(2), (4096, 5))
        (factors,) = _started(_map(weight), x, 3).values()
        np.testing.assert_allclose(factors.sum(), weight, atol=1e-2)

    def test_gated_functions(self):
        """Signs and sizes of x do not matter: the bits tell the functions apart."""
        task, key = GatedFunctions(), jax.random.key(0)
        params = task.init(key)
        target = task.target(params)
        components = _started(target, task.inputs(jax.random.key(9), 8192), 4)
        weights = {site: np.asarray(w, np.float64) for site, w in target.weights.items()}
        pieces = {site: np.asarray(f.matrices(), np.float64) for site, f in components.items()}
        places = measures.supports(weights, owners(params), 4)
        table = measures.energies(pieces, places)
        chosen = measures.assign(table.inside)
        self.assertGreater(measures.function_purity(table, chosen).min(), 0.99)

    def test_rows_of_a_map_at_every_position(self):
        """As above, of sequences whose positions are grouped one by one, some of them padding."""
        weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        x = SparseFeatures(4, 0.05)(jax.random.key(1), 8192).reshape(-1, 8, 4)
        x = x.at[:, 5:].set(jax.random.normal(jax.random.key(2), (1024, 3, 4)))
        example = jax.ShapeDtypeStruct((2, 8, 4), jnp.float32)
        target = Target(lambda params, x: x @ params["w"], {"w": weight}, inputs=example)
        rule = Objective(
            per_position=True,
            selection="sample",
            topk=1.0,
            valid=lambda x: jnp.broadcast_to(jnp.arange(8) < 5, x.shape[:2]),
        )
        (factors,) = _started(target, x, 4, rank=1, rule=rule).values()
        pieces = np.asarray(factors.matrices())
        order = np.linalg.norm(pieces, axis=2).argmax(axis=1)
        np.testing.assert_allclose(pieces.sum(axis=0), weight, atol=0.05)
        np.testing.assert_array_equal(np.sort(order), np.arange(4))


def _two_maps(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def _look_ups(params, ids):
    return jnp.tanh(params["table"][ids]).sum(axis=1) @ params["b"]


def _tied(params, ids):
    return jnp.tanh(params["table"][ids] @ params["b"]) @ params["table"].T


def _stack(params, x):
    return jnp.einsum(
        "bgo,go->bg", jnp.tanh(jnp.einsum("bgi,gio->bgo", x, params["a"])), params["b"]
    )


def _convolution(params, x):
    found = jax.lax.conv(x, params["a"], (1, 1), "VALID")
    return jnp.tanh(found).sum(axis=(2, 3)) @ params["b"]


def _transposed(params, x):
    return jnp.tanh(x @ params["a"].T) @ params["b"].T


def _normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


KINDS = {
    "positions": (_two_maps, {"a": _normal(5, 7), "b": _normal(7, 3)}, _normal(512, 6, 5)),
    "look_ups": (
        _look_ups,
        {"table": _normal(9, 4), "b": _normal(4, 3)},
        np.random.default_rng(0).integers(0, 9, (512, 3)),
    ),
    "tied": (
        _tied,
        {"table": _normal(9, 4), "b": _normal(4, 4)},
        np.random.default_rng(0).integers(0, 9, (512, 3)),
    ),
    "stack": (_stack, {"a": _normal(3, 5, 4), "b": _normal(3, 4)}, _normal(512, 3, 5)),
    "convolution": (
        _convolution,
        {"a": _normal(4, 2, 2, 2), "b": _normal(4, 3)},
        _normal(256, 2, 4, 4),
    ),
    "transposed": (_transposed, {"a": _normal(7, 5), "b": _normal(3, 7)}, _normal(512, 5)),
}


class KindsTest(parameterized.TestCase):
    @parameterized.product(
        kind=sorted(KINDS), start=["partitioned", "covering"], per_position=[False, True]
    )
    def test_parts_of_full_rank_add_up(self, kind, start, per_position):
        """Every kind of site, in groups of examples and of positions."""
        if per_position and kind not in ("positions", "tied"):
            self.skipTest("no positions")
        apply_fn, params, x = KINDS[kind]
        count = 4
        if start == "covering":  # few groups, so that components are free for the rest
            count = 9
            x = np.resize(x[:1], x.shape) if per_position else x[np.arange(len(x)) % 3]
        target = Target(apply_fn, params, inputs=x[:2])
        rule = Objective(per_position=per_position)
        found = _started(target, x, count, start=start, rule=rule)
        for site, weight in target.weights.items():
            self.assertTrue(np.isfinite(found[site].matrices()).all())
            scale = float(jnp.abs(weight).max())
            np.testing.assert_allclose(found[site].sum(), weight, atol=0.03 * scale, err_msg=site)

    def test_moment_of_a_group_is_the_literal_sum(self):
        rng = np.random.default_rng(0)
        reads, members = rng.normal(size=(40, 3, 4)), rng.uniform(size=(25, 5))
        members *= np.eye(5)[members.argmax(axis=1)]
        rows = rng.permutation(40)[:25]
        found = groups._in_order(jnp.asarray(rows), jnp.asarray(members), jnp.ones(5, bool), 40)
        for group in range(5):
            x = reads[rows]
            expected = np.einsum("r,rni,rnj->ij", members[:, group], x, x)
            moment = found.moment(jnp.asarray(reads), 4, jnp.int32(group))
            np.testing.assert_allclose(moment, expected, rtol=1e-4, atol=1e-5)
        every = np.einsum("rg,rni,rnj->ij", members, x, x)
        np.testing.assert_allclose(found.whole(jnp.asarray(reads), 4), every, rtol=1e-4)


class CoveringTest(absltest.TestCase):
    def test_features_through_an_identity(self):
        """Every feature's component has all of its row and of the identity; free ones the rest."""
        angles = 2 * np.pi * np.arange(5) / 5
        rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        params = {"w": jnp.asarray(rows), "hidden": jnp.eye(2)}
        target = Target(
            lambda params, x: jax.nn.relu(x @ params["w"] @ params["hidden"] @ params["w"].T - 0.3),
            params,
            inputs=jax.ShapeDtypeStruct((2, 5), jnp.float32),
        )
        x = SparseFeatures(5, 0.05)(jax.random.key(1), 8192)
        found = _started(target, x, 9, 2, "covering")
        pieces = {site: np.asarray(factors.matrices()) for site, factors in found.items()}
        for site, weight in target.weights.items():
            np.testing.assert_allclose(pieces[site].sum(axis=0), weight, atol=1e-3)
        holders = np.einsum("cfh,fh->cf", pieces["w"], rows).argmax(axis=0)
        self.assertLen(set(holders.tolist()), 5)
        for feature, holder in enumerate(holders):
            expected = np.zeros_like(rows)
            expected[feature] = rows[feature]
            np.testing.assert_allclose(pieces["w"][holder], expected, atol=0.15)
            alone = rows[feature] @ pieces["hidden"][holder]
            np.testing.assert_allclose(alone, rows[feature], atol=0.15)
        free = np.setdiff1d(np.arange(9), holders)
        for factors in found.values():
            self.assertTrue((np.linalg.matrix_rank(factors.matrices()[free]) <= 1).all())

    def test_spare_components_too_few_for_a_direction_each_hold_several(self):
        weight = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        x = jnp.repeat(jnp.eye(4)[:1], 64, axis=0)  # one group; of the rest three directions
        (factors,) = _started(_map(weight), x, 2, 3, "covering").values()
        np.testing.assert_allclose(factors.sum(), weight, atol=1e-4)

    def test_refuses_rounds(self):
        with self.assertRaisesRegex(UserError, "refine.every=100, set refine.every=0"):
            Settings(start="covering", steps=1000, refine=Rules(every=100))


class UnitNormTest(parameterized.TestCase):
    @parameterized.parameters("partitioned", "covering")
    def test_products_stay_with_more_terms_than_a_site_has(self, start):
        target, x = _map(2 * np.eye(4, dtype=np.float32)), SparseFeatures(4, 0.05)

        def begun(unit_norm):
            settings = Settings(
                Objective(),
                num_components=6,
                rank=6,
                start=start,
                steps=1,
                unit_norm=unit_norm,
            )
            targets, seeds = loop.stack([target]), jnp.zeros(1, jnp.uint32)
            state = Trainer(settings, targets, x, seeds).init_state()
            (factors,) = loop.pick(state.components, 0).values()
            return factors

        factors = begun(True)
        np.testing.assert_allclose(factors.matrices(), begun(False).matrices(), atol=1e-5)
        lengths = np.linalg.norm(factors.U, axis=1)
        np.testing.assert_allclose(lengths, np.ones_like(lengths), rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
