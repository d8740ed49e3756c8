"""The effect of every credit on small policies, and its tables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tabular
from tabular import TabularParams, Tree
from theorem_instances import Family

from iapo_jax.core import markdown
from iapo_jax.core.types import Array

# Changes to the defaults of `tabular.token_advantages`.
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
# Derivatives and changes up to this are rounding.
_ROUNDING = 1e-10


def settings_of(name: str) -> dict[str, Any]:
  """Returns the arguments of `tabular.token_advantages` for a method."""
  given = METHODS[name]
  weight = _INFO_WEIGHT.get(given["mode"], 0.0)
  return {
      "info_weight": weight, "explore_weight": 0.0, "length_weight": 0.0,
      "discount": 1.0, "cost": 0.0, "gated": True, "probe": "elicited",
  } | given  # fmt: skip


def study(
    family: Family, name: str, steps: int, rate: float
) -> dict[str, Any]:
  """Measures a method, given by `name`, on all instances of a family.

  Follows a path of `steps` updates with learning rate `rate`. Returns shares of
  the instances and means over them, by name; `path` is the mean length
  [steps + 1].
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
  """Returns how often length falls, correctness does not, and both."""
  falls = length < -_ROUNDING
  keeps = correct >= -_ROUNDING
  return {
      f"{name}_shorter": falls.mean(),
      f"{name}_kept": keeps.mean(),
      f"{name}_both": (falls & keeps).mean(),
  }


# Optimisation would take longer than these programs run.
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
  """Returns derivatives [m] and (lengths, accuracies) [m, steps + 1]."""

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
  """Returns d/dη of(params + η direction) at η = 0."""
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
  """Tabulates shares in %, means over the families."""
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
  """Tabulates shares in % of one column, by family."""
  rows = {
      name: [rows[name][column] for rows in found.values()]
      for name in METHODS
  }
  return _markdown(list(found), rows)


def _markdown(head: list[str], rows: dict[str, list[float]]) -> str:
  return markdown.table(
      ["", *head],
      (
          [name, *(f"{100 * share:.0f}" for share in shares)]
          for name, shares in rows.items()
      ),
  )
