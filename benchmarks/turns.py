"""Two programs measured in turns: each of two processes sleeps while the other one works."""

import argparse
import os
import statistics
from typing import Any

from benchmarks import process


def add_options(parser: argparse.ArgumentParser, seconds: float) -> None:
    """Add the options of the rounds; `seconds` is the default time of each side of a round."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds, help="for each side of a round")
    parser.add_argument("--steps", type=int, help="steps of each side of a round, not --seconds")
    parser.add_argument("--threads", type=int, help="cores for each side; default: all")


def limit_cores(args: argparse.Namespace) -> None:
    """Leave `args.threads` cores to this process and those it starts; all if it is None."""
    if args.threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    args.threads = process.cores()


def alternate(
    ours: process.Worker, theirs: process.Worker, args: argparse.Namespace
) -> dict[str, Any]:
    """Time the steps of both programs in alternating rounds.

    Returns:
      Both times and peak memories of every round; of every round the ratio of the times, and the
      medians of ratios and times; the peak memories and their ratio.
    """
    rounds = [_round(ours, theirs, args, number) for number in range(args.rounds)]
    ratios = [round_["theirs"] / round_["ours"] for round_ in rounds]
    memory = {side: max(r[f"{side}_memory"] for r in rounds) for side in ("ours", "theirs")}
    return {
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds_per_step": {
            side: statistics.median(r[side] for r in rounds) for side in ("ours", "theirs")
        },
        "peak_memory": memory,
        "libraries_memory": {
            "ours": ours.ready["libraries_memory"],
            "theirs": theirs.ready["libraries_memory"],
        },
        "memory_ratio": memory["theirs"] / memory["ours"],
        "machine": ours.ready["machine"],
    }


def _round(
    ours: process.Worker, theirs: process.Worker, args: argparse.Namespace, number: int
) -> dict[str, float]:
    """Return the mean seconds per step of both; their order alternates from round to round."""
    sides = [("ours", ours), ("theirs", theirs)]
    answers = {}
    for side, worker in sides if number % 2 == 0 else reversed(sides):
        request = {"do": "run", "seconds": args.seconds, "steps": args.steps}
        answers[side] = worker.ask(request)
    times = {side: statistics.mean(a["seconds_per_step"]) for side, a in answers.items()}
    return times | {f"{side}_memory": a["peak_memory"] for side, a in answers.items()}
