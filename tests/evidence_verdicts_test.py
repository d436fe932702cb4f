"""Verdicts on a decomposition that is right by construction, and on five wrong ones."""

import dataclasses
from unittest import mock

import evidence_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

import apd_jax
from apd_jax.components import Factors
from apd_jax.evaluation.evidence import rows
from apd_jax.evaluation.evidence.distance import Number

OPTIONS = dict(adversary_steps=(5,), draws=1, baselines=("svd",))
EYE = np.eye(cases.BLOCKS)


def names(found):
    return [verdict.name for verdict in found.verdicts]


class VerdictsTest(absltest.TestCase):
    def fails(self, found, line):
        self.assertIn(line, found.failed)
        self.assertIn(f"{line} FAILS", repr(found))

    def test_a_right_one_passes_every_line(self):
        found, x = cases.shares(EYE)
        evidence = found.evidence(x, **OPTIONS)
        self.assertLen(names(evidence), 12)
        self.assertEmpty(evidence.failed, repr(evidence))
        self.assertLess(evidence["own"], 1e-6)
        self.assertEqual(evidence["l0"], 1.0)

    def test_merged(self):
        pairs = np.repeat(np.eye(3), 2, axis=1)
        found, x = cases.shares(np.concatenate([pairs, np.zeros((3, 6))]))
        self.fails(found.evidence(x, **OPTIONS), "size")

    def test_split(self):
        found, x = cases.shares(np.concatenate([EYE / 2, EYE / 2]))
        self.fails(found.evidence(x, **OPTIONS), "own mask")

    @pytest.mark.slow
    def test_always_active(self):
        found, x = cases.shares(np.concatenate([np.full((1, 6), 0.9), EYE / 10]))
        evidence = found.evidence(x, **OPTIONS)
        self.assertEqual(evidence["always_on"], 1)
        self.fails(evidence, "always active")

    def test_shuffled_masks(self):
        found, x = cases.shares(EYE)
        choose = rows.choose

        def wrong(*arguments):
            return np.roll(choose(*arguments), 1, axis=0)

        with mock.patch.object(rows, "choose", wrong):
            evidence = found.evidence(x, **OPTIONS)
        self.fails(evidence, "mask of another row")
        self.fails(evidence, "own mask")

    def test_one_broken_site(self):
        found, x = cases.shares(EYE)
        factors = found.components["second"]
        found.components["second"] = Factors(factors.reads, factors.writes.at[4].mul(1.5))
        evidence = found.evidence(x, **OPTIONS)
        self.fails(evidence, "faithfulness by site")
        self.fails(evidence, "sites one by one")
        by_name = {verdict.name: verdict for verdict in evidence.verdicts}
        self.assertEqual(by_name["faithfulness by site"].where, "second")
        self.assertIn("at second (limit 0.01)", str(by_name["sites one by one"]))

    def test_what_only_works_alone(self):
        # A component that is wrong where another block's inputs are: alone it is never run there.
        found, x = cases.shares(EYE)
        factors = found.components["second"]
        spread = factors.reads + 0.8 * jnp.roll(factors.reads, 3, axis=2)
        found.components["second"] = Factors(spread, factors.writes)
        evidence = found.evidence(x, **OPTIONS)
        self.assertNotIn("own mask", evidence.failed)
        for line in ("pooled rows", "random partial masks", "adversarial masks", "all components"):
            self.fails(evidence, line)

    @pytest.mark.slow
    def test_components_that_are_needed_and_never_active(self):
        # The last component holds half of the network and is never chosen.
        table = np.concatenate([EYE, np.zeros((1, 6))])
        found, x = cases.shares(table)
        weights = found.target.weights
        half = {s: f.sum() / 2 for s, f in found.components.items()}
        components = {
            s: Factors(f.reads, f.writes).from_matrices(
                f.matrices().at[:6].mul(0.5).at[6].set(half[s]), weights[s].shape[0]
            )
            for s, f in found.components.items()
        }

        def choose(objective, target, parts, block):
            del objective, target, parts
            active = np.abs(np.reshape(block.x, (len(block.x), 6, 3))).sum(axis=2) > 0
            return np.pad(active, ((0, 0), (0, 1)))

        found.components.update(components)
        with mock.patch.object(rows, "choose", choose):
            evidence = found.evidence(x, **OPTIONS)
        self.fails(evidence, "never needed")

    def test_limits_can_be_set(self):
        found, x = cases.shares(EYE)
        limits = apd_jax.Limits(size=0.1, own=0.5)
        evidence = found.evidence(x, limits=limits, **OPTIONS)
        self.assertEqual(evidence.failed, ["size"])
        verdict = evidence.verdicts[names(evidence).index("own mask")]
        self.assertEqual(verdict.limit, 0.5)
        self.assertTrue(verdict.meaning.endswith("."))

    def test_nan_fails_in_whatever_line_it_is(self):
        found, x = cases.shares(EYE)
        evidence = found.evidence(x, **OPTIONS)
        broken = Number(float("nan"))
        for line, verdict in {
            "pooled_64": "pooled rows",
            "random_half": "random partial masks",
            "own": "own mask",
            "permuted": "mask of another row",
            "svd_own": "equal size",
        }.items():
            numbers = evidence.numbers | {line: broken}
            self.fails(dataclasses.replace(evidence, numbers=numbers), verdict)
        first, second = evidence.sites
        for sites in (
            (first._replace(missing=np.nan), second),
            (first, second._replace(missing=np.nan)),
        ):
            self.fails(dataclasses.replace(evidence, sites=sites), "faithfulness by site")
        second = second._replace(replaced=broken)
        self.fails(dataclasses.replace(evidence, sites=(first, second)), "sites one by one")

    def test_a_rounded_distance_below_zero_is_no_scale(self):
        found, x = cases.shares(EYE)
        evidence = found.evidence(x, **OPTIONS)
        numbers = evidence.numbers | {"zero": Number(-1e-9), "own": Number(0.5)}
        self.fails(dataclasses.replace(evidence, numbers=numbers), "own mask")

    def test_without_baselines_none_is_judged(self):
        found, x = cases.shares(EYE)
        evidence = found.evidence(x, **(OPTIONS | {"baselines": ()}))
        self.assertNotIn("equal size", names(evidence))
        self.assertFalse(any(name.startswith("svd") for name in evidence.to_dict()))

    @pytest.mark.slow
    def test_one_compilation_for_each_kind_of_pass(self):
        found, x = cases.shares(EYE)
        found = cases.decomposition(found.target, found.components, x, batch_size=20)
        with jax.log_compiles(), self.assertLogs("jax", "WARNING") as logs:
            found.evidence(x, **(OPTIONS | {"adversary_steps": (5, 9)}))
        compiled = [line for line in logs.output if "Finished XLA compilation" in line]
        for name in ("of_weights", "score"):
            self.assertLen([line for line in compiled if f"jit({name})" in line], 1, name)
        for name in ("of_mask", "ascend"):  # one for the components, one for singular vectors
            self.assertLen([line for line in compiled if f"jit({name})" in line], 2, name)


if __name__ == "__main__":
    absltest.main()
