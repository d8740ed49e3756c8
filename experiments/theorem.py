"""Does the update shorten, and spare correctness? Exact, on small policies.

  python experiments/theorem.py
  python experiments/theorem.py --instances=16 --steps=50 --output=runs/theorem

Every policy is a table of logits whose completions can all be written down
(`iapo_jax.tabular`), so that the update's expectation, the expected length and
the chance of a right answer are exact, in float64. For every credit it is told
how often length falls and correctness does not: by the derivatives along the
first update, and over a path of many small updates. docs/theory.md says what
follows. Writes theorem.json and theorem.svg to the folder; under three minutes
on two CPU cores.
"""

import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from theorem_instances import Family, all_families

from iapo_jax import cli, files, tabular
from iapo_jax.report.figures import LIGHT, colour
from iapo_jax.tabular import TabularParams, Tree
from iapo_jax.types import Array

_OUTPUT = flags.DEFINE_string("output", "docs/evidence", "Folder to write to.")
_INSTANCES = flags.DEFINE_integer(
    "instances", 32, "Of each family.", lower_bound=1
)
_STEPS = flags.DEFINE_integer("steps", 300, "Of each path.", lower_bound=1)
_RATE = flags.DEFINE_float("rate", 0.1, "Learning rate.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the instances.", lower_bound=0)

# What changes against the defaults of `tabular.token_advantages`.
METHODS: dict[str, dict[str, Any]] = {
    "GRPO": {"mode": "grpo"},
    "paper": {"mode": "paper", "explore_weight": 1.0},
    "paper, no exploration": {"mode": "paper"},
    "to_go, γ 1, no gate": {"mode": "to_go", "gated": False},
    "the same, consistent probe": {
        "mode": "to_go", "gated": False, "probe": "consistent",
    },
    "to_go, γ .9, no gate": {
        "mode": "to_go", "gated": False, "discount": 0.9,
    },
    "to_go, γ 1": {"mode": "to_go"},
    "to_go, γ .9 (default)": {"mode": "to_go", "discount": 0.9},
    "to_go, γ .9, cost .05": {"mode": "to_go", "discount": 0.9, "cost": 0.05},
    "cost .05 alone": {
        "mode": "to_go", "gated": False, "cost": 0.05, "probe": "none",
    },
    "cost .05 alone, gated": {"mode": "to_go", "cost": 0.05, "probe": "none"},
    "length penalty": {"mode": "length_penalty", "length_weight": 1.0},
}  # fmt: skip
_INFO_WEIGHT = {"paper": 1.0, "to_go": 2.0}
_NO_CREDIT = {"info_weight": 0.0, "explore_weight": 0.0, "length_weight": 0.0}
_WORDS = ("mode", "probe")
# Of a derivative or a change that is no more than rounding.
_ROUNDING = 1e-10


def main(_: list[str]) -> None:
  """Runs the study, and writes what it found."""
  start = time.perf_counter()
  folder = pathlib.Path(_OUTPUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  # Derivatives of no sign must be told from small ones.
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
  with matplotlib.rc_context({"svg.hashsalt": "iapo_jax"}):
    figure.savefig(folder / "theorem.svg", metadata={"Date": None})
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


def settings_of(name: str) -> dict[str, Any]:
  """The arguments of `tabular.token_advantages` of a method."""
  given = METHODS[name]
  weight = _INFO_WEIGHT.get(given["mode"], 0.0)
  return {
      "info_weight": weight, "explore_weight": 0.0, "length_weight": 0.0,
      "discount": 1.0, "cost": 0.0, "gated": True, "probe": "elicited",
  } | given  # fmt: skip


def study(
    family: Family, name: str, steps: int, rate: float
) -> dict[str, Any]:
  """What a method does to all instances of a family.

  Args:
    family: the instances.
    name: of the method.
    steps: of each path.
    rate: learning rate.

  Returns:
    Shares of the instances and means over them, by name; `path` holds the
    mean length [steps + 1].
  """
  settings = settings_of(name)
  words = {key: settings.pop(key) for key in _WORDS}
  first, path = _measure(
      family.params, family.tree, settings, rate, steps=steps, **words
  )
  first = {key: np.asarray(value) for key, value in first.items()}
  length, correct = (np.asarray(values) for values in path)
  row: dict[str, Any] = {}
  for key in ("update", "natural", "credit"):
    row |= _shares(key, first[f"{key}_length"], first[f"{key}_accuracy"])
  down = np.diff(length, axis=1)
  up = np.diff(correct, axis=1)
  falls = (down <= _ROUNDING).all(1) & (length[:, -1] < length[:, 0])
  keeps = (up >= -_ROUNDING).all(1)
  row |= {
      "path_shorter": falls.mean(),
      "path_kept": keeps.mean(),
      "path_both": (falls & keeps).mean(),
  }
  row |= _shares(
      "end", length[:, -1] - length[:, 0], correct[:, -1] - correct[:, 0]
  )
  row |= {
      "length_first": length[:, 0].mean(),
      "length_last": length[:, -1].mean(),
      "accuracy_first": correct[:, 0].mean(),
      "accuracy_last": correct[:, -1].mean(),
  }
  row = {key: round(float(value), 4) for key, value in row.items()}
  return row | {"path": length.mean(0)}


def _shares(name: str, length: np.ndarray, correct: np.ndarray) -> dict:
  """How often length falls, correctness does not, and both."""
  falls = length < -_ROUNDING
  keeps = correct >= -_ROUNDING
  return {
      f"{name}_shorter": falls.mean(),
      f"{name}_kept": keeps.mean(),
      f"{name}_both": (falls & keeps).mean(),
  }


# Programs that run for milliseconds are not worth optimising.
@functools.partial(
    jax.jit,
    static_argnames=("steps", "mode", "probe"),
    compiler_options={"xla_backend_optimization_level": 0},
)
def _measure(
    params: TabularParams,
    tree: Tree,
    settings: dict[str, Any],
    rate: Array,
    *,
    steps: int,
    mode: str,
    probe: str,
) -> tuple[dict[str, Array], tuple[Array, Array]]:
  """Derivatives [m] along first updates; lengths, accuracies [m, steps + 1]."""

  def credit(now: TabularParams, given: dict[str, Any]) -> Array:
    return tabular.token_advantages(now, tree, mode=mode, probe=probe, **given)

  def first(now: TabularParams) -> dict[str, Array]:
    whole = credit(now, settings)
    alone = whole - credit(now, settings | _NO_CREDIT)
    directions = {
        "update": tabular.gradient(now, tree, whole),
        "natural": tabular.natural_gradient(now, tree, whole),
        "credit": tabular.gradient(now, tree, alone),
    }
    return {
        f"{key}_{what}": derivative(of, now, tree, direction)
        for key, direction in directions.items()
        for what, of in (
            ("length", tabular.expected_length),
            ("accuracy", tabular.accuracy),
        )
    }

  def path(start: TabularParams) -> tuple[Array, Array]:
    def step(now: TabularParams, _: None) -> tuple[TabularParams, tuple]:
      update = tabular.gradient(now, tree, credit(now, settings))
      after = jax.tree.map(lambda x, u: x + rate * u, now, update)
      return after, _measures(now, tree)

    last, along = jax.lax.scan(step, start, length=steps)
    return jax.tree.map(
        lambda xs, x: jnp.append(xs, x), along, _measures(last, tree)
    )

  return jax.vmap(first)(params), jax.vmap(path)(params)


def _measures(params: TabularParams, tree: Tree) -> tuple[Array, Array]:
  return (
      tabular.expected_length(params, tree),
      tabular.accuracy(params, tree),
  )


def derivative(
    of: Any, params: TabularParams, tree: Tree, direction: TabularParams
) -> Array:
  """d/dη of(params + η direction) at η = 0."""
  return jax.jvp(lambda p: of(p, tree), (params,), (direction,))[1]


_COLUMNS = {
    "update_shorter": "shorter",
    "update_kept": "no less right",
    "update_both": "both",
    "natural_both": "both, natural",
    "credit_shorter": "credit alone: shorter",
    "credit_kept": "no less right",
    "path_both": "path: both",
    "end_both": "end: both",
}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
  """Shares in %, means over the families, as lines of Markdown."""
  rows = {
      name: [
          float(np.mean([rows[name][column] for rows in found.values()]))
          for column in _COLUMNS
      ]
      for name in METHODS
  }
  return _markdown(list(_COLUMNS.values()), rows)


def family_table(
    found: dict[str, dict[str, dict[str, float]]], column: str
) -> str:
  """Shares in % of one column, by family, as lines of Markdown."""
  rows = {
      name: [rows[name][column] for rows in found.values()]
      for name in METHODS
  }
  return _markdown(list(found), rows)


def _markdown(head: list[str], rows: dict[str, list[float]]) -> str:
  lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
  for name, shares in rows.items():
    cells = " | ".join(f"{100 * share:.0f}" for share in shares)
    lines.append(f"| {name} | {cells} |")
  return "\n".join(lines)


def draw(
    found: dict[str, dict[str, dict[str, float]]],
    paths: dict[str, dict[str, np.ndarray]],
) -> Figure:
  """Shares by method and family, and lengths over two families' paths."""
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
  """A share for every method (rows) and family (columns)."""
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
  shown = [name for name in METHODS if name in _SHOWN]
  for i, name in enumerate(shown):
    axes.plot(paths[name], color=colour(i, LIGHT), linewidth=2, label=name)
  axes.set(xlabel="update", ylabel="expected tokens", title=family)
  axes.title.set(color=LIGHT.ink, fontsize=11)
  axes.grid(alpha=0.25, color=LIGHT.faint)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(LIGHT.faint)
  axes.tick_params(colors=LIGHT.ink)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set_color(LIGHT.ink)


_SHOWN = (
    "GRPO", "paper", "to_go, γ 1, no gate", "to_go, γ .9 (default)",
    "to_go, γ .9, cost .05", "cost .05 alone", "length penalty",
)  # fmt: skip


if __name__ == "__main__":
  cli.run(main)
