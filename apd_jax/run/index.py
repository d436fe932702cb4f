"""Write the index page of a directory of runs: `python -m apd_jax.run.index runs/paper`."""

import argparse
import json
import pathlib
import urllib.parse
from typing import Any

from apd_jax import studies
from apd_jax.errors import UserError
from apd_jax.report import words
from apd_jax.report.index import FinishedRun, render_index
from apd_jax.runtime.workdir import atomic_write_text

PAGE = "index.html"


def write(directory: pathlib.Path, names: list[str] | None = None) -> pathlib.Path:
    """Write `directory/index.html`, which links the reports of the runs in a directory.

    Args:
      directory: holds one workdir for each run.
      names: the runs in reading order; by default every subdirectory, by name. A subdirectory with
        a report and no results, of a sweep or of your own network, is linked; one without either
        is listed as not finished.

    Returns:
      The path of the page.

    Raises:
      UserError: a results.json that no run of a study wrote.
      OSError: the page cannot be written.
    """
    if names is None:
        names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    runs, others, missing = [], [], []
    for name in names:
        path = directory / name / "results.json"
        link = f"{urllib.parse.quote(name)}/report.html"
        if path.is_file():
            title, results = _read(path)
            runs.append(FinishedRun(title, link, results, name))
        elif path.with_name("report.html").is_file():
            others.append((name, link))
        else:
            missing.append(name)
    page = directory / PAGE
    atomic_write_text(page, render_index(runs, missing, others))
    return page


def _read(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The title and the results of a run of a study."""
    try:
        results = json.loads(path.read_text())
        title = studies.find(results["name"]).title(results["variant"])
        return words.control(title, results["config"]), results
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no results of a run ({type(error).__name__}: {error}): rerun its "
            "command, or name the runs that are to be listed"
        ) from error


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path, help="directory of the runs' directories")
    parser.add_argument("names", nargs="*", help="runs in reading order; by default all")
    arguments = parser.parse_args()
    if not arguments.directory.is_dir():
        parser.error(f"{arguments.directory} is no directory")
    try:
        print(write(arguments.directory, arguments.names or None))
    except (UserError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
