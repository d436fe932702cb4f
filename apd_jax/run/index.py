"""Write the index page of a directory of runs: `python -m apd_jax.run.index runs/paper`."""

import argparse
import json
import pathlib

from apd_jax import studies
from apd_jax.report.index import FinishedRun, render_index
from apd_jax.runtime.workdir import atomic_write_text

PAGE = "index.html"


def write(directory: pathlib.Path, names: list[str] | None = None) -> pathlib.Path:
    """Write `directory/index.html`, which links the reports of the runs in a directory.

    Args:
      directory: holds one workdir for each run.
      names: the runs in reading order; by default every subdirectory, by name. A run without
        results is listed as not finished.

    Returns:
      The path of the page.

    Raises:
      OSError: the page cannot be written.
    """
    if names is None:
        names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    runs, missing = [], []
    for name in names:
        path = directory / name / "results.json"
        if not path.is_file():
            missing.append(name)
            continue
        results = json.loads(path.read_text())
        title = studies.find(results["name"]).title(results["variant"])
        runs.append(FinishedRun(title, f"{name}/report.html", results))
    page = directory / PAGE
    atomic_write_text(page, render_index(runs, missing))
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path, help="directory of the runs' directories")
    parser.add_argument("names", nargs="*", help="runs in reading order; by default all")
    arguments = parser.parse_args()
    if not arguments.directory.is_dir():
        parser.error(f"{arguments.directory} is no directory")
    print(write(arguments.directory, arguments.names or None))


if __name__ == "__main__":
    main()
