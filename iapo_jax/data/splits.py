"""Train, validation and test problems of a run on a published data set."""

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
  """Makes `train`, `validation` and `test` from the published splits.

  `published` keeps the published splits. `80_20` takes the first `first_rows`
  of the one published split; a permutation drawn from `split_seed` makes 80 %
  of them train. Validation is always drawn from train, so the splits share no
  problem. A split that the data set does not have is missing.

  Raises:
    ConfigError: if the data set cannot be split so, or has too few rows.
  """
  source = published.DATA_SETS[data.task]
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
  """Cuts the one split of a data set into 80 % and 20 %."""
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
  """Returns the first rows, as many as `data.FIELD` says; 0 is all.

  Raises:
    ConfigError: if there are fewer.
  """
  count = getattr(data, field)
  if count > len(rows):
    fail(f"data.{field}", count, f"{data.task} has {len(rows)}")
  return list(rows[: count or None])


def _held_out(
    train: Sequence[Example], data: DataConfig
) -> tuple[list[Example], list[Example]]:
  """Draws validation from train; returns the rest and it, both in order."""
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
  """Raises ConfigError if a run's splits lack `train` or `test`."""
  for name in ("train", "test"):
    if name not in splits:
      raise ConfigError(
          f"config.data.split = {data.split!r}: {data.task} has no published"
          f" {name} problems; 80_20 makes both of what it has"
      )


def note(data: DataConfig) -> str | None:
  """Returns the line to print beside numbers on an unusual test split."""
  if data.split != "80_20":
    return None
  return (
      f"train and test are parts (80/20, seed {data.split_seed}) of one"
      f" published split of {data.task}: numbers on it do not compare with"
      f" those on {data.task} as it is published"
  )


def fingerprint(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
  """Returns the SHA-256 of the problems of each split, in their order."""
  found = {}
  for name, rows in splits.items():
    digest = hashlib.sha256()
    for row in rows:
      for part in (row.question, row.answer, row.solution):
        digest.update(part.encode() + b"\0")
    found[name] = digest.hexdigest()
  return found
