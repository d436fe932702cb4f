"""Compare the training step of a language model with that of goodfire-ai/spd.

`python -m benchmarks.against_spd --spd=CHECKOUT --python=PYTHON_WITH_TORCH`
Both decompose the network of `benchmarks.transformer`: ours into C components of rank m over all
sites, spd into C * m rank-one subcomponents of every site. Two processes alternate in rounds; each
sleeps while the other one works.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from benchmarks import options, process, tables, transformer, turns
from benchmarks.run import WORKER

FOLDER = pathlib.Path("spd", "experiments", "lm")
CONFIGS = ("ss_gpt2_simple_config", "ss_gpt2_simple-2L")
PRECISIONS = ("float32", "bfloat16")


def request(name: str, precision: str, device: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the first request to the driver: the settings and network to prepare.

    Raises:
      FileNotFoundError: The checkout has no settings of this name.
    """
    sizes = transformer.Sizes(**args.sizes)
    config = args.spd.resolve() / FOLDER / f"{name}.yaml"
    if not config.exists():
        found = ", ".join(sorted(path.stem for path in config.parent.glob("*.yaml")))
        raise FileNotFoundError(f"{config} does not exist; expected one of: {found or 'none'}")
    return {
        "spd": str(args.spd.resolve()),
        "config": str(config),
        "precision": precision,
        "sizes": sizes._asdict(),
        "subcomponents": sizes.components * sizes.rank,
        "threads": args.threads,
        "warm": args.warm,
        "device": device,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_spd", description=__doc__)
    parser.add_argument("--spd", type=pathlib.Path, required=True, help="checkout of its code")
    parser.add_argument(
        "--python", type=pathlib.Path, required=True, help="a Python that can run it"
    )
    parser.add_argument(
        "--configs", nargs="+", default=list(CONFIGS), metavar="CONFIG",
        help=f"names of files in {FOLDER} of the checkout; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS),
        help="of spd, whose default is bfloat16; ours is float32",
    )  # fmt: skip
    parser.add_argument("--sizes", type=json.loads, default={}, help="such as '{\"layers\": 2}'")
    turns.add_options(parser, seconds=30)
    parser.add_argument("--warm", type=int, default=2, help="steps of each side before any timing")
    options.add_output_option(parser, "spd.json")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    turns.limit_cores(args)
    cases = [(name, precision) for name in args.configs for precision in args.precisions]
    results: dict[str, Any] = {"configs": {}}
    for name, _ in cases:
        request(name, "", "", args)  # a wrong name must not be noticed after the first case
    driver = [str(args.python.absolute()), "-m", "benchmarks.spd_driver"]
    ours_request = {"sizes": args.sizes, "warm": args.warm}
    with process.worker(WORKER, ours_request) as ours:
        device = "cuda" if ours.ready["machine"]["backend"] == "gpu" else "cpu"
        for name, precision in cases:
            case = f"{name}, {precision}"
            print(f"{case} ...", file=sys.stderr, flush=True)
            with process.worker(driver, request(name, precision, device, args)) as theirs:
                results["configs"][case] = turns.alternate(ours, theirs, args)
            options.write(args, results)
    print("\n" + tables.against(results))


if __name__ == "__main__":
    main()
