"""Draws one page about a run, or about several side by side.

  python experiments/report.py runs/arithmetic-to_go
  python experiments/report.py --output=runs/page \
      GRPO=runs/demo/seed-0/grpo GRPO=runs/demo/seed-1/grpo \
      to_go=runs/demo/seed-0/to_go to_go=runs/demo/seed-1/to_go

LABEL=FOLDER names a run; runs with one label are seeds of one setting and are
averaged. A run may still be going on.
"""

import pathlib

from absl import flags

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the page; FIRST_RUN/report by default."
)
_TITLE = flags.DEFINE_string("title", "IAPO runs", "Of the page.")
_EVALUATION = flags.DEFINE_string(
    "evaluation", None, "JSON of evaluate.py, for the times it measured."
)


def main(arguments: list[str]) -> None:
  """Groups the runs by label and writes the page."""
  folders: dict[str, list[pathlib.Path]] = {}
  for argument in arguments[1:]:
    label, equals, folder = argument.partition("=")
    if pathlib.Path(argument).exists():
      equals = ""  # where there is one, it is of the folder's name
    path = pathlib.Path(folder if equals else argument)
    name = label if equals else path.resolve().name
    folders.setdefault(name, []).append(path)
  if not folders:
    raise ConfigError("no run: give the folder of one run or of several")
  first = next(iter(folders.values()))[0]
  timing = []
  if _EVALUATION.value:
    timing = comparison.read(pathlib.Path(_EVALUATION.value))
  written = page.write(
      folders,
      pathlib.Path(_OUTPUT.value or first / "report"),
      title=_TITLE.value,
      timing=timing,
  )
  print(f"page     {written}")


if __name__ == "__main__":
  command.run(main)
