"""Train, validation and test problems of a published data set."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iapo_jax.config.data import DataConfig
from iapo_jax.core.errors import ConfigError, fail
from iapo_jax.data import published
from iapo_jax.data.examples import Example

Splits = dict[str, list[Example]]
_TRAIN_SHARE = 0.8


def make_splits(
    rows: Mapping[str, Sequence[Example]], data: DataConfig
) -> Splits:
  """The splits of a run, as configured.

  `published`: the published ones. `80_20`: one published split, its first
  `first_rows`, put in an order drawn from `split_seed`; the first 80 % are
  train. Validation problems are always drawn from train, so that no split of
  a run shares a problem with another one.

  Args:
    rows: published splits in their order.
    data: which of them, and how.

  Returns:
    `train`, `validation` and `test`; those that a data set does not have are
    missing.

  Raises:
    ConfigError: where there is nothing to split so, or too little.
  """
  source = published.data_set(data.task)
  if data.split == "80_20":
    train, test = _halves(rows, data)
    splits = {"train": train, "test": test}
  else:
    splits = {}
    if "train" in rows:
      splits["train"] = first(rows["train"], data, "first_rows")
    elif data.first_rows:
      rule = f"{data.task} has no published train problems"
      fail("data.first_rows", data.first_rows, rule)
    if source.test:
      splits["test"] = list(rows[source.test])
  if "test" in splits:
    splits["test"] = first(splits["test"], data, "test_problems")
  if "train" in splits:
    splits["train"], splits["validation"] = _held_out(splits["train"], data)
  return splits


def _halves(
    rows: Mapping[str, Sequence[Example]], data: DataConfig
) -> tuple[list[Example], list[Example]]:
  """The 80 % and the 20 % of a data set's one split."""
  if len(rows) > 1:
    rule = f"{data.task} has published splits: {', '.join(rows)}"
    fail("data.split", data.split, rule)
  everything = first(next(iter(rows.values())), data, "first_rows")
  order = np.random.default_rng(data.split_seed).permutation(len(everything))
  cut = round(_TRAIN_SHARE * len(everything))
  return (
      [everything[i] for i in sorted(order[:cut])],
      [everything[i] for i in sorted(order[cut:])],
  )


def first(rows: Sequence[Any], data: DataConfig, field: str) -> list[Any]:
  """As many as a field says; all for 0.

  Args:
    rows: problems.
    data: which.
    field: of it, a number of problems.

  Returns:
    The first of them.

  Raises:
    ConfigError: where there are fewer.
  """
  count = getattr(data, field)
  if count > len(rows):
    fail(f"data.{field}", count, f"{data.task} has {len(rows)}")
  return list(rows[: count or None])


def _held_out(
    train: Sequence[Example], data: DataConfig
) -> tuple[list[Example], list[Example]]:
  """Train less the validation problems, and those; both in order."""
  if data.validation_problems >= len(train):
    rule = f"must leave some of the {len(train)} train problems"
    fail("data.validation_problems", data.validation_problems, rule)
  rng = np.random.default_rng([data.split_seed, 1])
  chosen = rng.permutation(len(train))[: data.validation_problems]
  chosen = set(chosen.tolist())
  return (
      [row for i, row in enumerate(train) if i not in chosen],
      [row for i, row in enumerate(train) if i in chosen],
  )


def check_trainable(splits: Mapping[str, object], data: DataConfig) -> None:
  """Whether a run can train on and be judged by its splits.

  Args:
    splits: of `make_splits`.
    data: where they come from.

  Raises:
    ConfigError: where one is missing.
  """
  for name in ("train", "test"):
    if name not in splits:
      raise ConfigError(
          f"config.data.split = {data.split!r}: {data.task} has no published"
          f" {name} problems; 80_20 makes both of what it has"
      )


def note(data: DataConfig) -> str | None:
  """What must be said beside any number on a run's test problems.

  Args:
    data: the configuration.

  Returns:
    A line; None where nothing is unusual.
  """
  if data.split != "80_20":
    return None
  return (
      f"train and test are parts (80/20, seed {data.split_seed}) of one"
      f" published split of {data.task}: numbers on it do not compare with"
      f" those on {data.task} as it is published"
  )


def fingerprint(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
  """SHA-256 of the problems of each split, in their order.

  Args:
    splits: of a run.

  Returns:
    Hexadecimal digits by split.
  """
  found = {}
  for name, rows in splits.items():
    digest = hashlib.sha256()
    for row in rows:
      for part in (row.question, row.answer, row.solution):
        digest.update(part.encode() + b"\0")
    found[name] = digest.hexdigest()
  return found
