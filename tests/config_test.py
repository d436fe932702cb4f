"""Configs as the command line gives them: the paper's numbers, and what is refused."""

import pathlib
import sys
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized
from ml_collections import config_flags

from apd_jax import studies
from apd_jax.run import setup
from apd_jax.run.config import read_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
TMS, RESID_MLP = "tms.py:5-2", "resid_mlp.py:1"


def parse(spec, *overrides):
    """The config of `--config=configs/SPEC --config.OVERRIDE ...`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["main", f"--config={CONFIGS}/{spec}", *(f"--config.{text}" for text in overrides)]
    with mock.patch.object(sys, "argv", argv):  # the flag looks for its fields there
        values(argv)
    return values.config


def settings_of(spec):
    return record_of(spec).settings


def record_of(spec):
    config = parse(spec)
    return read_config(config, studies.find(config.name))


def setup_of(spec, *overrides):
    return setup.make_setup(parse(spec, *overrides))


class PaperTest(parameterized.TestCase):
    """Section 6 of the method's description."""

    @parameterized.parameters(
        ("tms.py", 5, 3, 0.211, 2048, 20_000, 3e-2, "constant", 0.05, 1.0, "components"),
        ("tms.py:5-2", 5, 3, 0.211, 2048, 20_000, 3e-2, "constant", 0.05, 1.0, "components"),
        ("tms.py:5-2-id", 5, 3, 0.211, 2048, 20_000, 3e-2, "constant", 0.05, 1.0, "components"),
        ("tms.py:40-10", 50, 11, 1.0, 2048, 20_000, 1e-3, "cosine", 0.05, 0.9, "target"),
        ("tms.py:40-10-id", 50, 11, 1.0, 2048, 20_000, 1e-3, "cosine", 0.05, 0.9, "target"),
        ("resid_mlp.py", 130, None, 1.28, 256, 10_000, 1e-3, "cosine", 0.01, 0.9, "target"),
        ("resid_mlp.py:1", 130, None, 1.28, 256, 10_000, 1e-3, "cosine", 0.01, 0.9, "target"),
        ("resid_mlp.py:2", 200, None, 1.28, 256, 10_000, 1e-3, "cosine", 0.01, 0.9, "target"),
        ("resid_mlp.py:3", 200, None, 1.28, 256, 10_000, 1e-3, "cosine", 0.01, 0.9, "target"),
    )
    def test_settings(self, spec, count, rank, k, batch, steps, rate, schedule, warmup, p, source):
        settings = settings_of(spec)
        self.assertEqual((settings.num_components, settings.rank), (count, rank))
        self.assertEqual((settings.batch_size, settings.steps), (batch, steps))
        self.assertEqual((settings.learning_rate, settings.schedule), (rate, schedule))
        self.assertEqual(settings.warmup_fraction, warmup)
        objective = settings.objective
        self.assertEqual((objective.topk, objective.schatten_p), (k, p))
        self.assertEqual(objective.attribution_source, source)
        self.assertEqual(settings.unit_norm, spec in ("resid_mlp.py", "resid_mlp.py:1"))

    @parameterized.parameters(
        ("tms.py:5-2", 1, 1, 0.7, 0),
        ("tms.py:40-10", 1, 10, 20, 0),
        ("resid_mlp.py:1", 1, 1, 10, 1),
        ("resid_mlp.py:2", 1, 2, 7, 1),
    )
    def test_coefficients(self, spec, faithfulness, minimality, simplicity, activation):
        found = parse(spec).coefficients
        self.assertEqual(found.faithfulness, faithfulness)
        self.assertEqual(found.minimality, minimality)
        self.assertEqual(found.simplicity, simplicity)
        self.assertEqual(found.activation, activation)

    @parameterized.parameters(
        ("tms.py:5-2", 5000, 1024, 5e-3, "linear", 0.05),
        ("tms.py:40-10", 2000, 2048, 5e-3, "linear", 0.05),
        ("resid_mlp.py:1", 10_000, 2048, 3e-3, "cosine", 0.01),
    )
    def test_training_of_the_target(self, spec, steps, batch, rate, schedule, probability):
        config = parse(spec)
        training = record_of(spec).target.training
        self.assertEqual((training.steps, training.batch_size), (steps, batch))
        self.assertEqual((training.learning_rate, training.schedule), (rate, schedule))
        self.assertEqual(training.weight_decay, 0.01)
        self.assertEqual(config.target.probability, probability)

    @parameterized.parameters(
        ("tms.py:5-2", ("linear1/kernel",)),
        ("tms.py:40-10-id", ("linear1/kernel", "hidden_0/kernel")),
        (
            "resid_mlp.py:2",
            tuple(f"layers_{i}/mlp_{p}/kernel" for i in (0, 1) for p in ("in", "out")),
        ),
    )
    def test_sites(self, spec, sites):
        self.assertEqual(record_of(spec).target.sites, sites)


class OverrideTest(parameterized.TestCase):
    @pytest.mark.slow
    def test_every_kind_of_field(self):
        found = setup_of(
            RESID_MLP,
            "seeds=3",
            "seed=4",
            "rank=2",
            "topk=2",
            "coefficients.activation=0.5",
            "target.num_features=6",
            "target.d_resid=6",
            "target.neurons=(4,5)",
            "target.embedding=identity",
            "target.synced=((0,1),(2,3,4))",
            "target.importance=(1.0,1.0,1.0,1.0,0.5,0.5)",
            "target.label_seed=3",
            "target.label_kind=abs",
            "target.in_bias=True",
        )
        np.testing.assert_array_equal(found.seeds, [4, 5, 6])
        self.assertEqual(found.settings.rank, 2)
        self.assertEqual(found.task.module.neurons, (4, 5))
        self.assertEqual(found.task.inputs.synced, ((0, 1), (2, 3, 4)))
        self.assertEqual(found.task.importance, (1.0, 1.0, 1.0, 1.0, 0.5, 0.5))
        self.assertLen(found.task.label_coefficients, 6)

    def test_setup_is_frozen(self):
        found = setup_of(TMS)
        with self.assertRaises(AttributeError):
            found.config.steps = 1
        self.assertIsInstance(hash(found.settings), int)
        self.assertEqual(found.seeds.dtype, jax.numpy.uint32)


class BadFieldTest(parameterized.TestCase):
    @parameterized.parameters(
        "tms.py:5-3", "tms.py:5_2", "resid_mlp.py:4", "resid_mlp.py:0", "tms.py:5-2-robust-x"
    )
    def test_unknown_variant(self, spec):
        variant = spec.split(":")[1]
        message = f"unknown variant '{variant}'; configs/.+ has .+"
        with self.assertRaisesRegex(flags.IllegalFlagValueError, message):
            parse(spec)

    @parameterized.parameters(
        ("learning_rat=0.1", "learning_rat"),
        ("coefficients.simplisity=1.0", "simplisity"),
        ("target.num_feature=3", "num_feature"),
        ("neurons=(3,)", "neurons"),
    )
    def test_misspelt_field(self, override, name):
        with self.assertRaisesRegex(AttributeError, name):
            parse(TMS, override)

    @parameterized.parameters("steps=many", "batch_size=2.5", "unit_norm=maybe", "rank=three")
    def test_wrong_type(self, override):
        with self.assertRaises((flags.IllegalFlagValueError, TypeError)):
            parse(TMS, override)

    @parameterized.parameters(
        ("topk=0.0004", "k=0.0004 selects nothing: .+ batch size 2048; k must be at least"),
        ("topk=5.01", r"topk must be at most num_components \(5\), got 5.01"),
        ("topk=0", "selects nothing"),
        ("topk=nan", "k must be a finite number"),
        ("rank=0", "rank must be at least 1 .+ got 0"),
        ("num_components=0", "num_components must be at least 1, got 0"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("steps=0", "^steps must be at least 1, got 0"),
        ("warmup_fraction=1", r"warmup_fraction must be in \[0, 1\), got 1.0"),
        ("warmup_fraction=-0.01", r"warmup_fraction must be in \[0, 1\), got -0.01"),
        ("learning_rate=0", "learning_rate must be positive and finite, got 0.0"),
        ("schedule=step", "schedule must be one of .+ got 'step'"),
        ("schedule=exponential", "needs a positive halflife, got None"),
        ("coefficients.faithfulness=-1", "coefficient faithfulness must not be negative, got -1.0"),
        ("coefficients.simplicity=-0.5", "coefficient simplicity must not be negative"),
        ("coefficients.lp_minimality=-0.5", "coefficient lp_minimality must not be negative"),
        ("schatten_p=0", r"schatten_p must be in \(0, 2\]"),
        ("selection=all", "selection must be one of"),
        ("selection=sample", "whole k in .+ got 0.211"),
        ("attribution_source=both", "attribution_source must be one of .+ got 'both'"),
        ("attribution_mode=both", "attribution_mode must be one of .+ got 'both'"),
        ("masked_route=both", "masked_route must be one of .+ got 'both'"),
        ("projection=both", "projection must be one of .+ got 'both'"),
        ("init_scale=0", "init_scale must be positive, got 0.0"),
        ("init_instances=0", "init_instances must be at least 1, got 0"),
        ("seeds=0", "seeds must be at least 1, got 0"),
        ("seed=-1", "seed must be in .+ got -1"),
        ("learning_rate=inf", "learning_rate must be a finite number, got inf"),
        ("learning_rate=nan", "learning_rate must be a finite number, got nan"),
        ("init_scale=inf", "init_scale must be a finite number, got inf"),
        ("coefficients.simplicity=1e39", "simplicity must be a finite number, got 1e.39"),
        ("target.weight_decay=nan", "weight_decay must be a finite number, got nan"),
        ("target.probability=nan", "probability must be a finite number, got nan"),
        ("seed=-1", r"seed must be in \[0, 2\*\*32 - seeds\], got -1"),
        ("seed=4294967296", r"seed must be in \[0, 2\*\*32 - seeds\], got 4294967296"),
        ("steps=2147483648", r"steps must be a whole number below 2\*\*31"),
        ("seeds=9999999999", r"seeds must be a whole number below 2\*\*31"),
        (
            "batch_size=2147483647",
            r"GB of memory are needed .*lower some of .*batch_size=2147483647",
        ),
        ("num_components=2000000000", "lower some of .*num_components=2000000000"),
        ("target.num_hidden=2000000000", "lower some of .*target.num_hidden=2000000000"),
        ("target.hidden_layers=1001", "hidden_layers must be at most 1000, got 1001"),
        ("chunk_steps=0", "chunk_steps must be at least 1, got 0"),
        ("checkpoint_every=0", "checkpoint_every must be at least 1"),
        ("evaluation_samples=0", "evaluation_samples must be at least 1"),
        ("name=tsm", r"name must be one of \[.+'resid_mlp', 'tms'\], got 'tsm'"),
        ("variant=5-3", "variant must be one of .+'5-2'.+ got '5-3'"),
        ("target.probability=1.01", r"probability must be in \(0, 1\], got 1.01"),
        ("target.probability=-0.01", r"probability must be in \(0, 1\], got -0.01"),
        ("target.steps=-1", "target: steps must be at least 0, got -1"),
        ("target.batch_size=0", "target: batch_size must be at least 1, got 0"),
        ("target.learning_rate=0", "target: learning_rate must be positive"),
        ("target.schedule=step", "target: schedule must be one of"),
        ("target.weight_decay=-1", "target: weight_decay must not be negative"),
        ("target.num_features=0", "target: num_features must be at least 1, got 0"),
        ("target.num_hidden=0", "target: num_hidden must be at least 1, got 0"),
        ("target.hidden_layers=-1", "target: hidden_layers must be at least 0, got -1"),
        ("target.hidden_kind=eye", "hidden_kind must be .+ got 'eye'"),
        ("target.input_mode=one", "input_mode must be one of .+ got 'one'"),
        ("target.synced=((0,1),(1,2))", r"overlap in features \[1\]"),
        ("target.synced=((0,5),)", r"\[5\] are out of range; there are 5"),
        ("target.synced=(0,1)", r"groups of features, such as .+ got \(0, 1\)"),
    )
    def test_tms(self, override, message):
        with self.assertRaisesRegex(ValueError, message):
            setup_of(TMS, override)

    @parameterized.parameters(
        (("target.embedding=identity",), "d_resid == num_features, got 1000 and 100"),
        (("target.embedding=eye",), "embedding must be .+ got 'eye'"),
        (("target.importance=(1.0,2.0)",), "importance needs one value .+ 100 features, got 2"),
        (("target.synced=((0,1),(1,2))",), r"overlap in features \[1\]"),
        (("target.synced=((0,100),)",), r"\[100\] are out of range; there are 100"),
        (("target.neurons=()",), r"a width per layer, each >= 1; got \(\)"),
        (("target.neurons=(3,0)",), r"a width per layer, each >= 1; got \(3, 0\)"),
        (("target.d_resid=0",), "target: d_resid must be at least 1, got 0"),
        (("target.activation=tanh",), "activation must be one of .+ got 'tanh'"),
        (("target.label_kind=relu",), "label_kind must be .+ got 'relu'"),
        (("variant=4",), r"variant must be one of \['1', '1-robust', '2', .+\], got '4'"),
        (
            ("distil=True", "topk=129.5"),
            r"at most num_components - 1, .+ \(129\), got 129.5",
        ),
    )
    def test_resid_mlp(self, overrides, message):
        with self.assertRaisesRegex(ValueError, message):
            setup_of(RESID_MLP, *overrides)


if __name__ == "__main__":
    absltest.main()
