"""Writes tables and figures of docs/evidence.md and README.md.

  python experiments/studies/comparison/evidence.py

Reads docs/evidence/mixed.json and slips.json, which `compare.py` writes, and
replaces the text between two marks `<!-- NAME -->` of a page by the table NAME.
"""

import pathlib
import re

import contest
from absl import flags

from iapo_jax.cli import command
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools.report import figures

_DOCS = flags.DEFINE_string(
    "docs",
    str(pathlib.Path(__file__).parents[3] / "docs"),
    "Folder of evidence.md and evidence/; README.md is beside it.",
)
TASKS = ("mixed", "slips")


def main(_: list[str]) -> None:
  """Writes the tables into the pages, and the figures."""
  docs = pathlib.Path(_DOCS.value)
  for page, found in pages(docs).items():
    text = filled(page.read_text(encoding="utf-8"), found, page.name)
    files.write_text(page, text)
    print(f"page     {page}")
  for task, found in results(docs / "evidence").items():
    figures.save(contest.draw(found), docs / "evidence" / f"{task}.svg")


def pages(docs: pathlib.Path) -> dict[pathlib.Path, dict[str, str]]:
  """Returns the tables of every page, by page and name."""
  found = results(docs / "evidence")
  return {
      docs / "evidence.md": tables(found),
      docs.parent / "README.md": {"results": contest.headline(found)},
  }


def results(folder: pathlib.Path) -> dict[str, contest.Found]:
  """Reads the result files in the folder, by task."""
  return {
      task: files.read_json(folder / f"{task}.json")
      for task in TASKS
      if (folder / f"{task}.json").exists()
  }


def tables(found_by_task: dict[str, contest.Found]) -> dict[str, str]:
  """Returns every table of docs/evidence.md, by name."""
  found = {}
  for task, result in found_by_task.items():
    found[f"{task} comparison"] = contest.comparison(result)
    found[f"{task} penalty"] = contest.against_penalty(result)
    found[f"{task} starts"] = contest.by_start(result)
    found[f"{task} controls"] = contest.controls(result)
    found[f"{task} tuning"] = contest.tuning(result)
    own = contest.levels if task == "mixed" else contest.checks
    found[f"{task} details"] = own(result)
  return found


def filled(page: str, found: dict[str, str], name: str) -> str:
  """Returns the text of a page with the tables `found` filled in.

  Raises ConfigError, with the page's `name`, if the marks of a table are
  missing.
  """
  for title, table in found.items():
    mark = f"<!-- {title} -->"
    pattern = re.compile(re.escape(mark) + r".*?" + re.escape(mark), re.DOTALL)
    if not pattern.search(page):
      raise ConfigError(f"{name}: must have {mark} twice")
    whole = f"{mark}\n\n{table}\n\n{mark}"
    page = pattern.sub(lambda _, whole=whole: whole, page, count=1)
  return page


if __name__ == "__main__":
  command.run(main)
