"""The runs whose evidence stands in the table of docs/results.md.

python docs/evidence_runs.py                 # list them: name, minutes on 2 quiet cores, command
python docs/evidence_runs.py tms-5-2 digits  # run some, keep their results, fill the tables

A run of a study that stops resumes with the same command. Results are kept in docs/results/.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "docs" / "evidence_runs.json"
OUTPUTS = ROOT / "runs" / "evidence"


def run(name: str, command: str) -> None:
    """Run one and keep its results."""
    arguments = command.split()[1:]  # this interpreter instead of "python"
    directory = OUTPUTS / name
    if arguments[0] == "-m":
        subprocess.run([sys.executable, *arguments, f"--workdir={directory}"], cwd=ROOT, check=True)
        tables(str(directory), command)
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "evidence.json"
    subprocess.run(
        [
            sys.executable,
            *arguments,
            f"--evidence={path}",
            f"--images={directory}",
            f"--report={directory / 'report.html'}",
        ],
        cwd=ROOT,
        check=True,
    )
    keep_example(name, command, json.loads(path.read_text()))
    tables()


def keep_example(name: str, command: str, found: dict) -> None:
    """Keep the evidence of an example as that of a study of one seed.

    Args:
      name: name of the example.
      command: its command.
      found: `{"numbers": evidence.to_dict(), "passed": .., "failed": [..]}`.
    """
    numbers = {"seed": 0} | {f"evidence_{key}": each for key, each in found["numbers"].items()}
    verdicts = {"0": {"passed": found["passed"], "failed": found["failed"]}}
    kept = {"command": command, "name": name, "seeds": [numbers], "evidence_verdicts": verdicts}
    path = ROOT / "docs" / "results" / "examples" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def tables(*arguments: str) -> None:
    """Fill the tables, after keeping the results of a run if one is given."""
    subprocess.run([sys.executable, ROOT / "docs" / "tables.py", *arguments], cwd=ROOT, check=True)


def main(names: list[str]) -> None:
    """List the runs, or run some of them."""
    runs = {one["name"]: one for one in json.loads(RUNS.read_text())}
    unknown = sorted(set(names) - set(runs))
    if unknown:
        raise SystemExit(f"no run {unknown[0]!r}; there are {', '.join(runs)}")
    for name in names:
        run(name, runs[name]["command"])
    if not names:
        for name, one in runs.items():
            print(f"{name:24} {one['minutes']:4} min  {one['command']}")


if __name__ == "__main__":
    main(sys.argv[1:])
