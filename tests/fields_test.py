"""Records of hyperparameters, and the mappings they become."""

import dataclasses
import decimal
import fractions
import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax import config_fields
from apd_jax.config_fields import setting, values
from apd_jax.errors import UserError
from apd_jax.training.config import Settings


@dataclasses.dataclass(frozen=True)
class Sizes:
    wide: int = setting(3, "Width.")
    kind: Literal["a", "b"] | None = setting("a", "Kind.")
    layers: tuple[int, ...] = setting((2,), "Layers.", flag=False)
    span: tuple[float, float] = setting((0.0, 1.0), "Span.", flag=False)

    def __post_init__(self):
        config_fields.check_values(self)
        config_fields.check_at_least(self, 1, "wide")


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str = setting("x", "Name.", free=True)
    flat: Sizes = setting(Sizes(), "Sizes.", flat=True)
    deep: Sizes = setting(Sizes(wide=5), "More sizes.")
    given: tuple[str, ...] = setting((), "From elsewhere.", flag=False)

    def __post_init__(self):
        config_fields.check_values(self)


class NumbersTest(parameterized.TestCase):
    @parameterized.parameters((np.int64(7),), (np.uint8(7),), (np.array(7),), (jnp.int32(7),))
    def test_scalars_become_python_numbers(self, seven):
        sizes = Sizes(wide=seven, layers=(seven, 2), span=(np.float32(0.5), np.array(1.0)))
        self.assertEqual(sizes, Sizes(wide=7, layers=(7, 2), span=(0.5, 1.0)))
        text = json.dumps(config_fields.to_mapping(sizes))
        self.assertEqual(json.loads(text)["layers"], [7, 2])

    @parameterized.parameters(
        (np.longdouble(0.5),),
        (fractions.Fraction(1, 2),),
        (decimal.Decimal("0.5"),),
        (jnp.bfloat16(0.5),),
        (jnp.array(0.5),),
    )
    def test_fractions_become_floats(self, half):
        sizes = Sizes(span=(half, 1))
        self.assertEqual(sizes, Sizes(span=(0.5, 1)))
        self.assertEqual(json.dumps(config_fields.to_mapping(sizes)["span"]), "[0.5, 1]")
        self.assertIs(type(Settings(learning_rate=half).learning_rate), float)

    @parameterized.parameters((np.array([7, 2]),), ([np.int64(7), 2],))
    def test_arrays_and_lists_become_tuples(self, layers):
        self.assertEqual(Sizes(layers=layers), Sizes(layers=(7, 2)))
        self.assertEqual(Whole(given=np.array(["s", "t"])).given, ("s", "t"))

    @parameterized.parameters(
        (jax.random.key(0), "wide must be a whole number"),
        (np.array([7]), "wide must be a whole number"),
        (np.array(["a"]), "wide must be a whole number"),
    )
    def test_what_is_no_number_is_refused(self, value, message):
        with self.assertRaisesRegex(UserError, message):
            Sizes(wide=value)
        with self.assertRaisesRegex(UserError, "kind must be one of"):
            Sizes(kind=value)
        with self.assertRaisesRegex(UserError, "schedules: topk: schedule must be one of"):
            config_fields.from_mapping(Settings(), {"schedules": {"topk": [value]}})

    @parameterized.parameters(
        (10**400,),
        (-fractions.Fraction(10**400),),
        (decimal.Decimal("1e400"),),
        (decimal.Decimal("NaN"),),
        (decimal.Decimal("sNaN"),),
        (np.longdouble("1e60"),),
    )
    def test_numbers_that_no_float32_holds_are_refused(self, value):
        with self.assertRaisesRegex(UserError, "each of span must be a finite number"):
            Sizes(span=(0.0, value))
        with self.assertRaisesRegex(UserError, "^x must be a finite number"):
            values.finite("x", value)

    def test_numbers_that_are_traced_are_refused(self):
        with self.assertRaisesRegex(UserError, "wide must be a whole number .* got .*Trace"):
            jax.jit(lambda n: Sizes(wide=n).wide)(3)

    @parameterized.parameters((np.int64(4),), (jnp.array(4),), (np.array(4),))
    def test_whole(self, four):
        self.assertIs(type(values.whole("n", four)), int)
        for bad in (four - 4, -four, 4.0, True, np.bool_(True), "4", None):
            with self.assertRaisesRegex(UserError, "^n must be"):
                values.whole("n", bad)

    @parameterized.parameters((np.float32(2.5),), (np.bool_(True),))
    def test_other_kinds_are_refused(self, value):
        with self.assertRaisesRegex(UserError, "wide must be a whole number"):
            Sizes(wide=value)


class MappingTest(parameterized.TestCase):
    def test_to_mapping(self):
        everything = {"name": "x", "wide": 3, "kind": "a", "deep": {"wide": 5, "kind": "a"}}
        self.assertEqual(config_fields.to_mapping(Whole(), flags_only=True), everything)
        hidden = {"layers": (2,), "span": (0.0, 1.0)}
        everything = everything | hidden | {"deep": everything["deep"] | hidden}
        self.assertEqual(config_fields.to_mapping(Whole()), everything | {"given": ()})

    @parameterized.parameters(
        Whole(), Whole(flat=Sizes(7, None), deep=Sizes(2, "b"), given=("s", "t")), Settings()
    )
    def test_there_and_back_through_json(self, record):
        written = json.loads(json.dumps(config_fields.to_mapping(record)))
        self.assertEqual(config_fields.from_mapping(record, written), record)
        self.assertEqual(config_fields.from_mapping(type(record)(), written), record)

    def test_back_from_nested_parts(self):
        """As `dataclasses.asdict` writes them."""
        settings = Settings(num_components=3, rank=2)
        written = json.loads(json.dumps(dataclasses.asdict(settings)))
        self.assertEqual(config_fields.from_mapping(Settings(), written), settings)

    def test_a_part_of_a_mapping_and_a_record_in_it(self):
        found = config_fields.from_mapping(Whole(), {"wide": 4, "deep": Sizes(9)})
        self.assertEqual(found, Whole(flat=Sizes(4), deep=Sizes(9)))
        found = config_fields.from_mapping(Whole(), {"deep": {"kind": "b"}})
        self.assertEqual(found, Whole(deep=Sizes(5, "b")))

    @parameterized.parameters(
        ({"wid": 1}, "Whole has no field 'wid'; did you mean 'wide'?"),
        (
            {"deep": {"zzz": 1}},
            r"deep: Sizes has no field 'zzz'; there are \['kind', 'layers', 'span', 'wide'\]",
        ),
        ({"wide": 0}, "^wide must be at least 1, got 0"),
        ({"deep": {"wide": 0}}, "deep: wide must be at least 1, got 0"),
        ({"layers": (2, float("inf"))}, r"each of layers must be a whole number .*got \(2, inf\)"),
        ({"layers": 3}, "each of layers must be a whole number .*got 3"),
        ({"span": (0.0, float("nan"))}, "each of span must be a finite number"),
        ({"kind": "c"}, r"kind must be one of \('a', 'b'\), got 'c'"),
    )
    def test_refused(self, mapping, message):
        with self.assertRaisesRegex(UserError, message):
            config_fields.from_mapping(Whole(), mapping)

    def test_sentences_and_free_fields(self):
        expected = {
            "name": "Name.",
            "wide": "Width.",
            "kind": "Kind.",
            "deep.wide": "Width.",
            "deep.kind": "Kind.",
        }
        self.assertEqual(dict(config_fields.sentences(Whole())), expected)
        self.assertEqual(config_fields.free_names(Whole()), ("name",))


if __name__ == "__main__":
    absltest.main()
