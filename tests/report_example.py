"""A small made-up run for the report's tests: results, metrics, figures and browser data."""

import struct
import zlib

import numpy as np

from apd_jax.report import browser, parts, words

SEEDS, FEATURES, COMPONENTS, OUTPUTS = 3, 4, 6, 4
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def png(width: int = 6, height: int = 4, dots_per_metre: int | None = None) -> bytes:
    """A white PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * width) * height)
    density = b"" if dots_per_metre is None else struct.pack(">IIB", *[dots_per_metre] * 2, 1)
    parts = [chunk(b"IHDR", header), chunk(b"pHYs", density) if density else b""]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def results() -> dict:
    """results.json of a run with three seeds of which the second failed."""
    seeds = [
        {"faithfulness_mse": 2.1e-6, "mmcs": 0.9981, "features_recovered": 4, "solved": True},
        {"faithfulness_mse": 2.7e-6, "mmcs": 0.8412, "features_recovered": 3, "solved": False},
        {"faithfulness_mse": 1.9e-6, "mmcs": 0.9977, "features_recovered": 4, "solved": True},
    ]
    summary = {"solve_rate": 2 / 3}
    for key in ("faithfulness_mse", "mmcs", "features_recovered"):
        values = [seed[key] for seed in seeds]
        summary[f"{key}_mean"] = float(np.mean(values))
        summary[f"{key}_std"] = float(np.std(values))
    names = ("name", "description", "value", "comparison", "threshold", "passed")
    verdicts = [
        ("faithfulness_mse_mean", "Components add up", 2.2e-6, "<=", 1e-5, True),
        ("mmcs_mean", "Components point along the features", 0.98996, ">=", 0.99, False),
    ]
    return {
        "name": "tms",
        "variant": "4-2",
        "config": {
            "name": "tms",
            "seed": 7,
            "seeds": SEEDS,
            "steps": 2000,
            "batch_size": 512,
            "num_components": COMPONENTS,
            "rank": 3,
            "topk": 0.2,
            "selection": "batch",
            "coefficients": {"faithfulness": 1.0, "minimality": 1.0, "simplicity": 0.7},
            "wandb": {"project": HOSTILE, "mode": None},
        },
        "versions": {"jax": "0.10.2", "numpy": "2.4.6"},
        "machine": "Linux, 2 CPU cores",
        "seconds": {"target": 6.3, "decompose": 171.2, "evaluate": 4.0},
        "seeds": seeds,
        "summary": summary,
        "verdicts": [dict(zip(names, verdict, strict=True)) for verdict in verdicts],
        "comparison": [
            {
                "key": "mmcs",
                "label": "MMCS",
                "ours": "0.946 ± 0.074",
                "paper": "0.998 ± 0.000",
                "spd": None,
                "definition": "mean largest cosine",
            }
        ],
    }


def metrics() -> list[dict]:
    """metrics.jsonl with ten records."""
    return [
        {
            "step": step,
            "loss/total": [3.0 / step, 5.0 / step, 4.0 / step],
            "loss/faithfulness": [1e-2 / step] * SEEDS,
            "learning_rate": 0.03,
            "dead_components": [0, 1, 0],
            HOSTILE: [1.0, 2.0, 3.0],
        }
        for step in range(200, 2001, 200)
    ]


def browser_arrays() -> dict:
    """Arguments of `browser_data`: a small site that is embedded whole, and a large one."""
    rng = np.random.default_rng(0)
    components = range(COMPONENTS)
    attributions = rng.uniform(0.0, 0.05, (FEATURES, COMPONENTS))
    attributions[np.arange(FEATURES), np.arange(FEATURES)] = 0.5 + 0.1 * np.arange(FEATURES)
    target_outputs = np.eye(OUTPUTS) * 0.8
    small = rng.normal(size=(COMPONENTS, FEATURES, 3)), rng.normal(size=(COMPONENTS, 3, 2))
    large = rng.normal(size=(COMPONENTS, 300, 2)), rng.normal(size=(COMPONENTS, 2, 20))
    small[0][5], large[0][5] = 0.0, 0.0
    factors = {"linear1": small, "layers_0/mlp_in": large}
    return {
        "factors": factors,
        "target_weights": {name: np.sum(u @ v, axis=0) for name, (u, v) in factors.items()},
        "attributions": attributions,
        "topk_mask": attributions > 0.3,
        "target_outputs": target_outputs,
        "topk_outputs": target_outputs * 0.9 - 0.01,
        "without": attributions**2,
        "active_share": np.array([0.05, 0.04, 0.03, 0.02, 0.0, 0.0]),
        "represented": [[c] if c < FEATURES - 1 else [] for c in components],
        "seed": 7,
        "views": {"linear1": browser.View(rows="feature", columns="dimension")},
        "inputs": "one input feature is 1, all others are 0",
    }


def arguments() -> dict:
    """Everything that `render_report` takes."""
    losses = [{"step": step, "loss": [1.0 / step] * SEEDS} for step in (100, 200, 300)]
    return {
        "subject": words.Subject(
            "Toy model of superposition 4-2",
            "The target is a toy model of superposition.",
            {"mmcs": ("MMCS", "mean largest cosine")},
            {"steps": "Optimiser steps.", "coefficients.faithfulness": "They add up."},
        ),
        "results": results(),
        "metrics": metrics(),
        "target_metrics": losses,
        "panels": [
            parts.Panel("plain", "A figure", "How to read it.", png(600, 400)),
            parts.Panel("wide", f"Wide {HOSTILE}", HOSTILE, png(1800, 300, 5906)),
        ],
        "browser": browser.browser_data(**browser_arrays()),
        "evidence": {"evidence": None},
        "contexts": None,
        "gaps": [],
        "command": "python -m apd_jax.main --config=configs/tms.py:4-2 --workdir='a b & <c>'",
    }
