"""Tests exactly, on small policies, if updates shorten and keep correctness.

  python experiments/studies/theory/theorem.py
  python experiments/studies/theory/theorem.py --instances=16 --steps=50

Every policy is a table of logits whose completions can all be enumerated
(`tabular.py`), so that the expected update, the expected length and the chance
of a right answer are exact, in float64. For every credit the study counts how
often length falls and correctness does not: by the derivatives along the first
update, and over a path of many small updates.

Writes theorem.json and theorem.svg to --output; docs/theory.md explains them.
Takes less than three minutes on two CPU cores.
"""

import pathlib
import time

import jax
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from theorem_instances import all_families
from theorem_study import METHODS, family_table, study, table

from iapo_jax.cli import command
from iapo_jax.core import files
from iapo_jax.tools.report import figures
from iapo_jax.tools.report.figures import LIGHT, colour

_OUTPUT = flags.DEFINE_string("output", "docs/evidence", "Folder to write to.")
_INSTANCES = flags.DEFINE_integer(
    "instances", 32, "Instances of each family.", lower_bound=1
)
_STEPS = flags.DEFINE_integer(
    "steps", 300, "Updates of each path.", lower_bound=1
)
_RATE = flags.DEFINE_float("rate", 0.1, "Learning rate.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the instances.", lower_bound=0)
# Methods whose paths are drawn.
_SHOWN = (
    "GRPO", "paper", "to_go, γ 1, no gate", "to_go, γ .9 (default)",
    "to_go, γ .9, cost .05", "cost .05 alone", "length penalty",
)  # fmt: skip


def main(_: list[str]) -> None:
  """Runs the study and writes its results."""
  start = time.perf_counter()
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  # float64 separates small derivatives from rounding of zeros.
  with jax.enable_x64(True):
    families = all_families(_INSTANCES.value, _SEED.value)
    found = {
        family.name: {
            name: study(family, name, _STEPS.value, _RATE.value)
            for name in METHODS
        }
        for family in families
    }
  paths = {
      family: {name: row.pop("path") for name, row in rows.items()}
      for family, rows in found.items()
  }
  figure = draw(found, paths)
  figures.save(figure, folder / "theorem.svg")
  settings = {
      flag.name: flag.value
      for flag in (_INSTANCES, _STEPS, _RATE, _SEED)
  }
  families_text = {family.name: family.text for family in families}
  files.write_json(
      folder / "theorem.json",
      {"settings": settings, "families": families_text, "results": found},
  )
  print(f"{table(found)}\n\n{family_table(found, 'update_both')}")
  print(f"seconds  {time.perf_counter() - start:.0f}")
  print(f"written  {folder / 'theorem.json'}, {folder / 'theorem.svg'}")


def draw(
    found: dict[str, dict[str, dict[str, float]]],
    paths: dict[str, dict[str, np.ndarray]],
) -> Figure:
  """Draws shares by method and family, and lengths over some paths."""
  figure = Figure(figsize=(13.5, 9.4), layout="constrained")
  top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
  heat = top.subplots(1, 2, sharey=True)
  _heat(heat[0], found, "update_both", "first update: shorter, no less right")
  _heat(heat[1], found, "path_both", "at every update of the path")
  lines = bottom.subplots(1, 3)
  for axes, family in zip(
      lines, ("redundant tail", "filler first", "thinking helps"), strict=True
  ):
    _paths(axes, family, paths[family])
  bottom.legend(
      *lines[0].get_legend_handles_labels(),
      loc="outside lower center",
      ncols=4,
      frameon=False,
      labelcolor=LIGHT.ink,
  )
  return figure


def _heat(axes: Axes, found: dict, column: str, title: str) -> None:
  """Draws the share for every method (rows) and family (columns)."""
  shares = np.array([
      [rows[name][column] for rows in found.values()] for name in METHODS
  ])
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
  for (i, j), share in np.ndenumerate(shares):
    axes.text(
        j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=9,
        color="white" if share > 0.7 else LIGHT.ink,
    )  # fmt: skip
  axes.set_xticks(range(len(found)), list(found), rotation=35, ha="right")
  axes.set_yticks(range(len(METHODS)), list(METHODS))
  axes.set_title(f"{title} (% of instances)", color=LIGHT.ink, fontsize=11)
  axes.tick_params(colors=LIGHT.ink, labelsize=9.5, length=0)
  axes.spines[:].set_visible(False)


def _paths(axes: Axes, family: str, paths: dict[str, np.ndarray]) -> None:
  for i, name in enumerate(_SHOWN):
    axes.plot(paths[name], color=colour(i, LIGHT), linewidth=2, label=name)
  axes.set(xlabel="update", ylabel="expected tokens", title=family)
  figures.dress(axes)


if __name__ == "__main__":
  command.run(main)
