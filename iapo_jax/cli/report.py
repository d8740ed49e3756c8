r"""Draws one page about a run, or about several runs side by side.

  iapo report runs/arithmetic-to_go
  iapo report --output=runs/page \
      GRPO=runs/demo/seed-0/grpo GRPO=runs/demo/seed-1/grpo \
      to_go=runs/demo/seed-0/to_go to_go=runs/demo/seed-1/to_go

LABEL=FOLDER names a run; runs with one label are seeds of one setting and are
averaged. A run need not be finished.
"""

import argparse
import pathlib

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add("runs", nargs="*", metavar="[LABEL=]RUN", help="folder of a run")
  add("--output", help="folder of the page; FIRST_RUN/report by default")
  add("--title", default="IAPO runs", help="title of the page")
  add(
      "--evaluation",
      metavar="JSON",
      help="OUTPUT.json of `iapo evaluate`; adds its table",
  )


def run(given: argparse.Namespace) -> None:
  """Groups the runs by label and writes the page."""
  folders: dict[str, list[pathlib.Path]] = {}
  for argument in given.runs:
    label, equals, folder = argument.partition("=")
    if pathlib.Path(argument).exists():
      equals = ""  # it is part of the folder's name
    path = pathlib.Path(folder if equals else argument)
    name = label if equals else path.resolve().name
    folders.setdefault(name, []).append(path)
  if not folders:
    raise ConfigError("no run: give the folder of one run or of several")
  first = next(iter(folders.values()))[0]
  timing = []
  if given.evaluation:
    timing = comparison.read(pathlib.Path(given.evaluation))
  written = page.write(
      folders,
      pathlib.Path(given.output or first / "report"),
      title=given.title,
      timing=timing,
  )
  print(f"page     {written}")
