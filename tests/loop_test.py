"""The loop: what it tells and when, what it refuses, and that resuming changes nothing."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from apd_jax.runtime import loop, step_programs
from apd_jax.runtime.outcome import Diverged

SEEDS, SCALES = jnp.array([3, 4], jnp.uint32), jnp.ones(2)


class State(NamedTuple):
    step: jax.Array
    weight: jax.Array


def init():
    return State(jnp.zeros(2, jnp.int32), jnp.ones((2, 3)))


def step_fn(scale, state, key):
    noise = jax.random.normal(key, (3,))
    weight = state.weight * 0.9 + scale * noise
    return State(state.step + 1, weight), {"loss/total": jnp.sum(weight), "noise": noise[0]}


class Recorder(loop.Observer):
    """Writes down what it is told, and asks to stop at a step."""

    def __init__(self, stop_at=None):
        self.told, self.states, self.rows, self._stop_at = [], {}, {}, stop_at
        self._chunks = 0

    def on_metrics(self, step, metrics):
        self.told.append(("row", step))
        self.rows[step] = metrics

    def save(self, step, state):
        self.told.append(("save", step))
        self.states[step] = jax.tree.map(np.array, state)

    def should_stop(self):
        self._chunks += 1
        return self._chunks == self._stop_at

    @property
    def saved(self):
        return [step for kind, step in self.told if kind == "save"]


def run(
    state=None,
    step=step_fn,
    context=SCALES,
    observer=None,
    feed=None,
    between=None,
    **options,
):
    options = {"steps": 12, "chunk_steps": 3} | options
    state = init() if state is None else jax.tree.map(jnp.array, state)
    training = types.SimpleNamespace(
        step=step, context=context, seeds=SEEDS, feed=feed, between=between, layout=None
    )
    return loop.run_steps(training, state, observer=observer, **options)


class ToldTest(parameterized.TestCase):
    @parameterized.parameters(
        (12, 3, 6, [6, 12]),
        (12, 3, 1, [3, 6, 9, 12]),
        (13, 3, 4, [6, 9, 12, 13]),
        (24, 3, 10, [12, 21, 24]),
        (12, 5, 100, [12]),
        (12, 5, None, [12]),
    )
    def test_saves_are_at_multiples_in_whole_chunks_and_at_the_end(self, steps, chunk, every, at):
        observer = Recorder()
        run(steps=steps, chunk_steps=chunk, save_every=every, observer=observer)
        self.assertEqual(observer.saved, at)

    def test_saves_do_not_shift_after_a_stop(self):
        observer = Recorder(stop_at=1)
        with self.assertRaises(loop.Stopped) as caught:
            run(steps=24, save_every=10, observer=observer)
        self.assertEqual(caught.exception.step, 3)
        again = Recorder()
        run(observer.states[3], steps=24, save_every=10, observer=again)
        self.assertEqual(again.saved, [12, 21, 24])

    def test_each_row_once_and_before_the_save_of_its_step(self):
        observer = Recorder()
        run(save_every=6, observer=observer)
        rows = [("row", 3), ("row", 6), ("save", 6), ("row", 9), ("row", 12), ("save", 12)]
        self.assertEqual(observer.told, rows)

    def test_metrics_are_those_of_the_last_step(self):
        observer = Recorder()
        run(observer=observer)
        keys = [jax.random.fold_in(jax.random.key(seed), 5) for seed in SEEDS]
        noise = [jax.random.normal(key, (3,))[0] for key in keys]
        np.testing.assert_array_equal(observer.rows[6]["noise"], noise)

    def test_stop_at_the_end_is_the_end(self):
        state = run(steps=3, observer=Recorder(stop_at=1))
        self.assertEqual(state.step.tolist(), [3, 3])

    def test_nothing_left_to_do(self):
        observer = Recorder()
        run(run(), observer=observer)
        self.assertEmpty(observer.told)


class SameTest(parameterized.TestCase):
    @parameterized.parameters(3, 6, 9)
    def test_resuming_changes_no_bit(self, at):
        observer = Recorder()
        straight = run(save_every=3, observer=observer)
        resumed = run(observer.states[at])
        for leaf, other in zip(straight, resumed, strict=True):
            np.testing.assert_array_equal(leaf, other)

    def test_compiles_once_per_length(self):
        def own_step(*args):
            return step_fn(*args)

        observer = Recorder()
        run(step=own_step, save_every=3, observer=observer)
        run(observer.states[6], step=own_step)
        self.assertEqual(step_programs.chunk(own_step, jax.tree.structure(0))._cache_size(), 1)


class CountsTest(parameterized.TestCase):
    def test_events_are_summed_over_a_chunk(self):
        def counting(scale, state, key):
            state, metrics = step_fn(scale, state, key)
            return state, metrics | {"count/events": state.step, "other/events": state.step}

        observer = Recorder()
        run(step=counting, chunk_steps=4, observer=observer)
        counts = {step: row["count/events"].tolist() for step, row in observer.rows.items()}
        self.assertEqual(counts, {4: [10, 10], 8: [26, 26], 12: [42, 42]})
        self.assertEqual(observer.rows[8]["other/events"].tolist(), [8, 8])


class PiecesTest(parameterized.TestCase):
    """A chunk may be fed in pieces, which changes no number and no report."""

    @parameterized.parameters(1, 3)
    def test_the_same_as_in_one(self, piece):
        def fed_step(context, state, key):
            scale, fed = context
            return step_fn(
                scale, state._replace(weight=state.weight + fed[state.step % piece]), key
            )

        def feed(step, length):
            asked.append((step, length))
            for start in range(step, step + length, piece):
                yield piece, jnp.arange(start, start + piece, dtype=jnp.float32)

        def read_step(scale, state, key):
            fed = state.step.astype(jnp.float32)
            return step_fn(scale, state._replace(weight=state.weight + fed), key)

        asked, one, other = [], Recorder(), Recorder()
        found = run(step=fed_step, feed=feed, observer=one, save_every=6)
        expected = run(step=read_step, observer=other, save_every=6)
        np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6)
        self.assertEqual(one.told, other.told)
        self.assertEqual(asked, [(0, 3), (3, 3), (6, 3), (9, 3)])


class DataFailedTest(parameterized.TestCase):
    """Data that raise an error cost nothing that was done before."""

    def run_until(self, fails_at, observer=None, between=None, piece=3):
        def feed(step, length):
            for start in range(step, step + length, piece):
                if start == fails_at:
                    raise OSError("the shard is gone")
                yield piece, jnp.zeros(())

        def fed_step(context, state, key):
            return step_fn(context[0], state, key)

        return run(step=fed_step, feed=feed, observer=observer, between=between, save_every=100)

    def test_the_state_is_saved_and_carried(self):
        observer = Recorder()
        zeroed = loop.Between(
            6, 12, lambda context, state, key: state._replace(weight=0 * state.weight)
        )
        with self.assertRaisesRegex(
            loop.DataFailed, "after step 6 of 12: the shard is gone"
        ) as caught:
            self.run_until(6, observer, zeroed)
        self.assertIsInstance(caught.exception.__cause__, OSError)
        self.assertEqual(observer.told[-2:], [("row", 6), ("save", 6)])
        # That of step 6, before the work that follows it: resuming does that again.
        expected = run(steps=6)
        self.assertEqual(caught.exception.step, 6)
        for found in (observer.states[6], caught.exception.state):
            np.testing.assert_array_equal(found.weight, expected.weight)

    def test_data_of_the_work_between_steps(self):
        def read(step):
            if step == 6:
                raise OSError("the shard is gone")
            return jnp.float32(step)

        def added(context, state, key):
            return state._replace(weight=state.weight + context[1])

        observer = Recorder()
        with self.assertRaisesRegex(loop.DataFailed, "after step 6 of 12: the shard is gone"):
            self.run_until(99, observer, loop.Between(3, 12, added, read))
        self.assertEqual(observer.told[-2:], [("row", 6), ("save", 6)])
        first = run(steps=3)
        expected = run(first._replace(weight=first.weight + 3), steps=6)
        np.testing.assert_array_equal(observer.states[6].weight, expected.weight)

    @parameterized.parameters(5, 7)
    def test_within_a_chunk(self, fails_at):
        observer = Recorder()
        with self.assertRaisesRegex(loop.DataFailed, f"after step {fails_at} of 12"):
            self.run_until(fails_at, observer, piece=1)
        self.assertEqual(observer.told[-2:], [("row", fails_at), ("save", fails_at)])
        expected = run(steps=fails_at)
        np.testing.assert_array_equal(observer.states[fails_at].weight, expected.weight)

    def test_before_the_first_step_there_is_nothing_to_save(self):
        with self.assertRaisesRegex(OSError, "the shard is gone"):
            self.run_until(0)


class DivergedTest(parameterized.TestCase):
    @parameterized.parameters(np.nan, np.inf, -np.inf)
    def test_names_step_terms_and_seeds(self, value):
        def broken(scale, state, key):
            state, metrics = step_fn(scale, state, key)
            at = jnp.where((state.step == 8) & (scale > 1), value, 0.0)
            late = jnp.where(state.step >= 9, value, 0.0)
            return state, {
                "loss/a": late,
                "loss/b": at,
                "loss/c": at,
                "loss/total": at + late,
                "gradient_norm": late,
            } | metrics

        observer = Recorder()
        with self.assertRaisesRegex(
            Diverged, r"^loss/b and loss/c stopped .* step 8, .*\[1\].*lower learning rate"
        ):
            run(step=broken, context=jnp.array([1.0, 2.0]), save_every=3, observer=observer)
        self.assertEqual(observer.saved, [3, 6])
        self.assertEqual(list(observer.rows), [3, 6])

    def test_a_sum_is_named_where_its_terms_are_finite(self):
        def broken(scale, state, key):
            state, metrics = step_fn(scale, state, key)
            return state, {"loss/a": jnp.float32(3e38), "loss/total": jnp.float32(3e38) * 2}

        with self.assertRaisesRegex(Diverged, "^loss/total stopped .* step 1,"):
            run(step=broken)

    def test_state_is_looked_at_before_it_is_saved(self):
        def broken(scale, state, key):
            state, metrics = step_fn(scale, state, key)
            bad = jnp.where(state.step == 6, jnp.inf, state.weight)
            return State(state.step, bad), {"loss": jnp.float32(0)}

        observer = Recorder()
        with self.assertRaisesRegex(Diverged, "^weight of the state .* step 6;"):
            run(step=broken, save_every=3, observer=observer)
        self.assertEqual(observer.saved, [3])


if __name__ == "__main__":
    absltest.main()
