"""Forward passes with components in the place of matrices, dense and by groups of active pairs."""

import functools

import chex
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from absl.testing import absltest, parameterized

import apd_jax
from apd_jax import sites
from apd_jax.components import Factors
from apd_jax.masked import forward, grouped_matmul, grouping
from apd_jax.sites import Target

# Which components (of 3) are active on which of 7 examples.
MASKS = {
    "mixed": [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
    "two_empty_groups": [[0, 1, 0]] * 7,
    "one_pair": [[0, 0, 0]] * 6 + [[0, 0, 1]],
    "all": [[1, 1, 1]] * 7,
}


def pairs_of(mask):
    """Active (examples, components), as the selection gives them: in no particular order."""
    examples, components = np.nonzero(np.asarray(mask))
    order = np.random.default_rng(0).permutation(len(examples))
    return jnp.array(examples[order], jnp.int32), jnp.array(components[order], jnp.int32)


class ApplyTest(parameterized.TestCase):
    @parameterized.parameters(*networks.NAMES)
    def test_composed_and_masked(self, name):
        target, x = networks.make(name)
        components = networks.components(target)
        sums = {site: m.sum(axis=0) for site, m in networks.matrices(components).items()}
        composed = apd_jax.composed_apply(target, components, x)
        expected = networks.output(target, sums, x)
        np.testing.assert_allclose(composed, expected, rtol=1e-4, atol=1e-4)
        full = apd_jax.masked_apply(target, components, x, jnp.ones((7, 3), bool))
        np.testing.assert_allclose(full, expected, rtol=1e-4, atol=1e-4)
        for mask in (np.array(MASKS["mixed"], bool), networks.normal(3, 7, 3)):
            masked = apd_jax.masked_apply(target, components, x, mask)
            expected = networks.literal_masked(target, components, x, mask)
            np.testing.assert_allclose(masked, expected, rtol=1e-4, atol=1e-4)

    def test_a_nested_list_is_a_mask(self):
        target, x = networks.make("mlp")
        components, mask = networks.components(target), [[True, False, True]] * 7
        found = apd_jax.masked_apply(target, components, x, mask)
        expected = apd_jax.masked_apply(target, components, x, np.array(mask))
        np.testing.assert_array_equal(found, expected)
        with self.assertRaisesRegex(apd_jax.UserError, "mask must be one array"):
            apd_jax.masked_apply(target, components, x, [[True], [True, False]])

    def test_an_empty_batch(self):
        target, x = networks.make("mlp")
        components = networks.components(target)
        with self.assertRaisesRegex(apd_jax.UserError, "the batch is empty"):
            apd_jax.masked_apply(target, components, x[:0], np.ones((0, 3)))
        with self.assertRaisesRegex(apd_jax.UserError, "the batch is empty"):
            apd_jax.gradient_attributions(target, components, x[:0])

    @parameterized.parameters(
        apd_jax.gradient_attributions,
        apd_jax.ablation_attributions,
        apd_jax.activation_attributions,
        apd_jax.composed_apply,
        lambda *given: apd_jax.masked_apply(*given, np.ones((7, 3))),
    )
    def test_no_target_and_a_single_example(self, function):
        target, x = networks.make("mlp")
        components = networks.components(target)
        with self.assertRaisesRegex(apd_jax.UserError, "the network must be a Target"):
            function(target.apply_fn, components, x)
        with self.assertRaisesRegex(apd_jax.UserError, "single example"):
            function(target, components, x[0])

    @parameterized.parameters(((7, 4),), ((6, 3),), ((3,),))
    def test_bad_mask(self, shape):
        target, x = networks.make("mlp")
        with self.assertRaisesRegex(ValueError, r"mask has shape .+ \[B, C\] = \(7, 3\)"):
            apd_jax.masked_apply(target, networks.components(target), x, jnp.ones(shape))


class PairsTest(parameterized.TestCase):
    """The grouped route against the dense one."""

    @parameterized.parameters(
        ("tms", "mixed"), ("tms", "two_empty_groups"), ("mlp", "one_pair"), ("mlp", "all")
    )
    @pytest.mark.slow
    def test_outputs_records_and_gradients(self, name, mask):
        target, x = networks.make(name)
        mask = jnp.array(MASKS[mask], bool)
        weights = networks.normal(11, *jax.eval_shape(target, x).shape)

        def measure(components, x, operation):
            outputs, records = sites.run(target, x, operation(components))
            inner = [jnp.mean(record.y**2) for record in records.values()]
            return jnp.sum(weights * outputs) + sum(inner), (outputs, records)

        def by(operation):
            gradient = jax.jit(
                jax.value_and_grad(lambda c, x: measure(c, x, operation), (0, 1), has_aux=True)
            )
            return gradient(networks.components(target), x)

        dense = by(lambda c: forward.masked(c, mask))
        found = by(lambda c: forward.masked_pairs(c, pairs_of(mask), mask.shape[:1]))
        chex.assert_trees_all_close(found, dense, rtol=1e-4, atol=1e-4)

    def test_sequences(self):
        params = {"w": networks.normal(0, 3, 2)}
        target = Target(lambda p, x: x @ p["w"], params, inputs=jnp.zeros((2, 4, 3)))
        x, mask = networks.normal(1, 7, 4, 3), jnp.array(MASKS["mixed"], bool)
        components = networks.components(target)

        def by(operation):
            def total(c, x):
                outputs, _ = sites.run(target, x, operation(c))
                return jnp.sum(jnp.sin(outputs)), outputs

            return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(components, x)

        dense = by(lambda c: forward.masked(c, mask))
        found = by(lambda c: forward.masked_pairs(c, pairs_of(mask), mask.shape[:1]))
        chex.assert_trees_all_close(found, dense, rtol=1e-4, atol=1e-4)
        rows = [networks.matrices(components)["w"][np.flatnonzero(m)].sum(axis=0) for m in mask]
        expected = np.stack([a @ w for a, w in zip(x, rows, strict=True)])
        np.testing.assert_allclose(dense[0][1], expected, rtol=1e-4, atol=1e-4)

    @parameterized.parameters(
        (4096, 2, 5, "grouped"),
        (4096, 4096, 5, "dense"),
        (4, 2, 5, "dense"),
        # Gathering rows of rank 1 costs more than the products that it spares.
        (2048, 80, 1, "dense"),
        (2048, 80, 50, "grouped"),
    )
    def test_route_by_size(self, batch_size, num_pairs, rank, expected):
        factors = Factors(jnp.zeros((200, rank, 7)), jnp.zeros((200, rank, 9)))
        route = forward.choose_masked_route(num_pairs * 200, batch_size, {"w": factors})
        self.assertEqual(route, expected)


class GroupedTest(parameterized.TestCase):
    """Products by group, with every number of slots: from one to one for each pair."""

    def test_groups(self):
        pairs = jnp.array([5, 0, 3, 3]), jnp.array([2, 0, 2, 0])
        groups = grouping.group_pairs(pairs, 6, 4)
        np.testing.assert_array_equal(groups.example, [0, 3, 3, 5])
        np.testing.assert_array_equal(groups.group, [0, 0, 2, 2])
        np.testing.assert_array_equal(groups.member, [0, 1, 0, 1])
        np.testing.assert_array_equal(groups.slots.taken.sum(axis=1), [2, 0, 2, 0])
        self.assertIsNone(groups.owner)

    @parameterized.parameters(4, 9)
    @pytest.mark.slow
    def test_pairs_without_a_component_add_nothing(self, num_components):
        target = networks.mlp()
        components = networks.components(target, num_components)
        x = networks.normal(5, 3, 3)
        pairs = (
            jnp.array([0, 1, 2, 1, 0, 2]),
            jnp.array([1, 0, 3, num_components] + [num_components] * 2),
        )
        mask = jnp.zeros((3, num_components)).at[pairs].set(1)  # out of bounds is dropped

        def outputs(operation):
            return jax.jit(lambda parts: sites.run(target, x, operation(parts))[0])

        grouped = outputs(lambda parts: forward.masked_pairs(parts, pairs, (3,)))
        dense = outputs(lambda parts: forward.masked(parts, mask))
        np.testing.assert_allclose(grouped(components), dense(components), rtol=1e-5, atol=1e-6)
        gradients = [
            jax.jit(jax.grad(lambda p, f=f: jnp.sum(f(p) ** 2)))(components)
            for f in (grouped, dense)
        ]
        chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)

    def test_more_pairs_than_can_be_numbered(self):
        pairs = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
        with self.assertRaisesRegex(ValueError, r"below 2\*\*31, got 65536 \* 32768; use"):
            grouping.group_pairs(pairs, 65536, 32768)

    def test_groups_of_more_components_than_pairs(self):
        pairs = jnp.array([5, 0, 3, 3]), jnp.array([7, 1, 7, 0])
        groups = grouping.group_pairs(pairs, 6, 9)
        np.testing.assert_array_equal(groups.example, [3, 0, 3, 5])
        np.testing.assert_array_equal(groups.group, [0, 1, 2, 2])
        np.testing.assert_array_equal(groups.slots.taken.sum(axis=1), [1, 1, 2, 0])
        np.testing.assert_array_equal(groups.slots.pair[:3, 0], [0, 1, 2])
        np.testing.assert_array_equal(groups.owner[:3], [0, 1, 7])
        chex.assert_shape(groups.factors(jnp.zeros((9, 2, 5))), (4, 2, 5))

    @parameterized.product(
        slots=(1, 3, 5, 13), widths=((2, 5), (4, 1)), writes=(False, True), blocks=((), (3,))
    )
    @pytest.mark.slow
    def test_any_number_of_slots(self, slots, widths, writes, blocks):
        # Group 2 is empty, 0 and 1 overflow. Example 1 has three pairs, example 4 has none, and the
        # last pair has no component.
        components = jnp.array([1] * 7 + [0] * 4 + [3, 4])
        examples = jnp.array([0, 1, 2, 3, 5, 6, 7, 1, 2, 3, 5, 1, 0])
        groups = grouping.group_pairs((examples, components), 8, 4, slots)
        rank, width = widths
        factor = networks.normal(1, 4, *blocks, rank, width)
        if writes:
            rows = networks.normal(0, 13, *blocks, rank)
            function = functools.partial(grouped_matmul.write, batch_size=8)
        else:
            rows = networks.normal(0, 8, *blocks, width)
            function = grouped_matmul.read

        def expected(rows, factor):
            here = groups.example < 8
            own = jnp.where(here.reshape(-1, *(1,) * (factor.ndim - 1)), factor[groups.group], 0)
            if not writes:
                return jnp.einsum("p...d,p...rd->p...r", rows[groups.example], own)
            written = jnp.einsum("p...r,p...rd->p...d", rows, own)
            return jnp.zeros((8, *written.shape[1:])).at[groups.example].add(written)

        def total(f):
            return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1)))

        results = [
            total(f)(rows, factor) for f in (functools.partial(function, groups=groups), expected)
        ]
        chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_side_by_side(self):
        """Groups that overflow by nothing, a little, much: no further block, some, most."""
        components = jnp.array([[0, 1, 2, 3] * 4, [0] * 8 + [1, 2] * 4, [0] * 14 + [1, 2]])
        rows, factor = networks.normal(0, 16, 2), networks.normal(1, 4, 3, 2)

        def total(factor, components, slots):
            groups = grouping.group_pairs((jnp.arange(16), components), 16, 4, slots)
            return jnp.sum(jnp.sin(grouped_matmul.read(rows, factor, groups)))

        def found(slots):
            run = jax.value_and_grad(functools.partial(total, slots=slots))
            return jax.jit(jax.vmap(run, in_axes=(None, 0)))(factor, components)

        chex.assert_trees_all_close(found(4), found(16), rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(found(1), found(16), rtol=1e-4, atol=1e-5)

    @parameterized.parameters((327, 130, 8), (1, 10, 1), (5000, 2, 2656))
    def test_number_of_slots(self, pairs, components, expected):
        self.assertEqual(grouping.num_slots(pairs, components), expected)


class PlacedTest(parameterized.TestCase):
    """What a use multiplies by, of the factors of its site."""

    @parameterized.parameters(
        (True, None, None, lambda m: m.T),
        (False, (2, 0), None, lambda m: m[[2, 0]]),
        (True, (4, 1), (3,), lambda m: m[[3]][:, [4, 1]].T),
    )
    def test_placed(self, transposed, rows, columns, part):
        both = Factors(networks.normal(0, 3, 2, 4), networks.normal(1, 3, 2, 5))
        placement = sites.Placement("w", transposed, False, rows, columns, None, 1.0)
        expected = np.stack([part(np.asarray(m)) for m in both.matrices()])
        found = both.placed(placement).matrices()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    absltest.main()
