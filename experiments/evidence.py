"""Tables and figures of docs/evidence.md, from the result files beside it.

  python experiments/evidence.py

Runs nothing: `experiments/compare.py`, `oracle.py` and `theorem.py` make the
results. Text between two marks `<!-- NAME -->` of the page is replaced by the
table of that name.
"""

import pathlib
import re

from absl import flags

from iapo_jax import cli, files
from iapo_jax.errors import ConfigError
from iapo_jax.report import contest, figures

_DOCS = flags.DEFINE_string(
    "docs",
    str(pathlib.Path(__file__).parent.parent / "docs"),
    "Folder of evidence.md and evidence/.",
)
TASKS = ("mixed", "slips")


def main(_: list[str]) -> None:
  """Writes the page and its figures anew."""
  docs = pathlib.Path(_DOCS.value)
  page = docs / "evidence.md"
  page.write_text(
      filled(page.read_text(encoding="utf-8"), tables(docs / "evidence")),
      encoding="utf-8",
  )
  for task, found in results(docs / "evidence").items():
    figures.save(contest.draw(found), docs / "evidence" / f"{task}.svg")
  print(f"page     {page}")


def results(folder: pathlib.Path) -> dict[str, contest.Found]:
  """The result files of comparisons that are there."""
  return {
      task: files.read_json(folder / f"{task}.json")
      for task in TASKS
      if (folder / f"{task}.json").exists()
  }


def tables(folder: pathlib.Path) -> dict[str, str]:
  """Every table by its name."""
  found = {}
  for task, result in results(folder).items():
    found[f"{task} comparison"] = contest.comparison(result)
    found[f"{task} penalty"] = contest.against_penalty(result)
    found[f"{task} tuning"] = contest.tuning(result)
    own = contest.levels if task == "mixed" else contest.checks
    found[f"{task} details"] = own(result)
  return found


def filled(page: str, found: dict[str, str]) -> str:
  """The page with its tables put in.

  Args:
    page: with two marks for each table.
    found: tables by name.

  Returns:
    The page.

  Raises:
    ConfigError: for a table whose marks the page lacks.
  """
  for name, table in found.items():
    mark = f"<!-- {name} -->"
    pattern = re.compile(re.escape(mark) + r".*?" + re.escape(mark), re.DOTALL)
    if not pattern.search(page):
      raise ConfigError(f"docs/evidence.md: must have {mark} twice")
    whole = f"{mark}\n\n{table}\n\n{mark}"
    page = pattern.sub(lambda _, whole=whole: whole, page, count=1)
  return page


if __name__ == "__main__":
  cli.run(main)
