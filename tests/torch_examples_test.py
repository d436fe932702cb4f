"""Examples with torch modules: their functions on small random networks of the same kind."""

import contextlib
import importlib
import io
import pathlib
import re
import sys

import notebooks
import numpy as np
import pytest

_REASON = "needs apd_jax[torch] and transformers: bash launch/test_torch.sh"
torch = pytest.importorskip("torch", reason=_REASON)
transformers = pytest.importorskip("transformers", reason=_REASON)

ROOT = pathlib.Path(__file__).parents[1]
SIZES = {"num_components": 4, "rank": 1, "topk": 2, "steps": 3, "batch_size": 8}


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_docstrings_are_whole_sentences_of_named_modules(monkeypatch, tmp_path):
    docstrings = importlib.import_module("docstrings")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('class A:\n    """One two three."""\n')
    code = 'def f():\n    """One two\n    three.\n\n    More."""\n\n\ndef g():\n    """Short."""\n'
    (tmp_path / "named.py").write_text(code)
    monkeypatch.setattr(docstrings.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert docstrings.texts(words=3) == [("named", "One two three.")]


@pytest.mark.slow
def test_sentence_encoder(tmp_path):
    example = importlib.import_module("sentence_encoder")
    from docstrings import Text

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False).eval()
    random = np.random.default_rng(0)
    lengths = random.integers(1, 7, (24, 1))
    inputs = {
        "input_ids": random.integers(0, 20, (24, 6), dtype=np.int32),
        "attention_mask": (np.arange(6) < lengths).astype(np.int32),
    }
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        whole = encoder(**tensors).last_hidden_state.numpy()
    module, hidden = example.split(encoder, inputs, 1, size=16)
    found = example.decompose(
        module, hidden, ["layers.1.intermediate.dense", "layers.1.output.dense"], **SIZES
    )
    assert len(found.target.sites) == 2
    for text, length, embedding in zip(whole, lengths[:, 0], found.target(hidden), strict=True):
        mean = text[:length].mean(axis=0)
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-5)
    sentences = [Text(f"module_{i % 3}", f"text {i}") for i in range(24)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        example.examine(found, hidden, sentences, tmp_path / "drawn.png", 16)
    assert "top texts of a component" in printed.getvalue()
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_similarity_is_the_mean_cosine_of_pairs():
    example = importlib.import_module("sentence_encoder")
    embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = example.similarity(embeddings, [np.array([0, 1]), np.array([0, 1, 2])])
    np.testing.assert_allclose(found, [1, 1 / 3])


class Tokenizer:
    """Numbers instead of words."""

    @staticmethod
    def decode(tokens):
        return " ".join(map(str, np.asarray(tokens)))

    def __call__(self, text):
        return {"input_ids": [int(word) for word in text.split()]}


def language_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=12,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.slow
def test_language_model(tmp_path):
    example = importlib.import_module("smollm2")
    model = language_model()
    tokens = np.random.default_rng(0).integers(0, 20, (16, 5), dtype=np.int32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits.numpy()
    hidden = example.split(model, tokens, 1, size=8)
    found = example.decompose(model, hidden, **SIZES)
    assert len(found.target.sites) == 3
    inputs = {"inputs_embeds": hidden}
    np.testing.assert_allclose(found.target(inputs), logits, atol=1e-5)
    assert found.mask(inputs).shape == (16, 5, 4)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        example.examine(found, hidden, tokens, Tokenizer(), tmp_path / "drawn.png")
    assert printed.getvalue().count("active on") == 4
    assert (tmp_path / "drawn.png").stat().st_size > 5000


@pytest.mark.slow
def test_capitals(tmp_path, capsys):
    """Taking a component out changes the outputs as edited parameters do."""
    example, smollm2 = map(importlib.import_module, ("capitals", "smollm2"))
    model, random = language_model(), np.random.default_rng(0)
    tokens = random.integers(0, 20, (24, example.LENGTH), dtype=np.int32)
    hidden = smollm2.split(model, tokens, 1, size=8)
    hidden, other = hidden[:8], hidden[8:]
    found = smollm2.decompose(model, hidden, other={"inputs_embeds": other}, **SIZES)
    keep = np.array([1, 0, 1, 1], np.float32)
    edited = found.target.apply_fn(found.edited({1: 0.0}), {"inputs_embeds": hidden})
    without = example.outputs(found, hidden, keep, size=3)
    expected = torch.log_softmax(torch.from_numpy(np.array(edited)), dim=-1).numpy()
    np.testing.assert_allclose(without, expected, atol=1e-5)
    example.examine(found, hidden, other, list("abcdefgh"), Tokenizer(), tmp_path / "drawn.png")
    assert capsys.readouterr().out.count("without component") == 4
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_windows_have_equal_lengths():
    example = importlib.import_module("smollm2")
    long, short = " ".join(map(str, range(40))), "1 2 3"
    found = example.windows(Tokenizer(), [long, short, long])
    np.testing.assert_array_equal(found, np.tile(np.arange(example.LENGTH), (2, 1)))
    assert example.windows(Tokenizer(), [long, short], 3).tolist() == [[0, 1, 2], [1, 2, 3]]


@pytest.mark.slow
def test_torch_digits(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    example = importlib.import_module("torch_digits")
    monkeypatch.setattr(sys, "argv", ["torch_digits.py", "--quick", "--images", str(tmp_path)])
    example.main()
    assert "without component" in capsys.readouterr().out
    assert (tmp_path / "torch_digits.png").stat().st_size > 5000


@pytest.mark.slow
def test_notebook_with_few_steps():
    notebook = notebooks.read("pytorch_model")
    notebooks.execute(notebook)
    printed = [
        out.text for cell in notebook.cells for out in cell.get("outputs", []) if "text" in out
    ]
    (difference,) = re.findall(r"largest difference (\S+)", "".join(printed))
    assert float(difference) < 1e-5
