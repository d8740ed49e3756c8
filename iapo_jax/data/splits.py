"""Makes the train, validation and test problems of a published data set."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iapo_jax.config.data import DataConfig
from iapo_jax.core.errors import fail
from iapo_jax.data import published
from iapo_jax.data.examples import Example

Splits = dict[str, list[Example]]
_TRAIN_SHARE = 0.8


def make_splits(
    rows: Mapping[str, Sequence[Example]], data: DataConfig
) -> Splits:
  """Makes `train`, `validation` and `test` from the published splits.

  `published` keeps the published splits. `80_20` takes the first `first_rows`
  rows of the only published split; 80 % of them, drawn with `split_seed`,
  become train. Validation is always drawn from train, so the splits share no
  row. A split that the data set does not have is missing.

  Raises:
    ConfigError: if the data set cannot be split in this way, or has too few
      rows.
  """
  source = published.DATA_SETS[data.task]
  splits: Splits = {}
  if data.split == "80_20":
    if len(rows) > 1:
      rule = (
          f"{data.task} has published splits ({', '.join(rows)}); use published"
      )
      fail("data.split", data.split, rule)
    everything = first(next(iter(rows.values())), data, "first_rows")
    count = round(_TRAIN_SHARE * len(everything))
    splits["train"], splits["test"] = _parted(
        everything, count, data.split_seed
    )
  else:
    if "train" in rows:
      splits["train"] = first(rows["train"], data, "first_rows")
    elif data.first_rows:
      rule = (
          f"{data.task} has no published train problems; set it to 0, or set"
          " data.split to 80_20"
      )
      fail("data.first_rows", data.first_rows, rule)
    if source.test:
      splits["test"] = list(rows[source.test])
  if "test" in splits:
    splits["test"] = first(splits["test"], data, "test_problems")
  if "train" in splits:
    count = data.validation_problems
    if count >= len(splits["train"]):
      rule = f"must be less than {len(splits['train'])}, all train problems"
      fail("data.validation_problems", count, rule)
    splits["validation"], splits["train"] = _parted(
        splits["train"], count, [data.split_seed, 1]
    )
  return splits


def _parted(
    rows: Sequence[Example], count: int, seed: int | Sequence[int]
) -> tuple[list[Example], list[Example]]:
  """Draws `count` rows; returns these and the other rows, both in order."""
  order = np.random.default_rng(seed).permutation(len(rows))
  drawn = set(order[:count].tolist())
  return (
      [row for i, row in enumerate(rows) if i in drawn],
      [row for i, row in enumerate(rows) if i not in drawn],
  )


def first(rows: Sequence[Any], data: DataConfig, field: str) -> list[Any]:
  """Returns the first rows; `field` of `data` is their number, 0 means all.

  Raises:
    ConfigError: if there are fewer.
  """
  count = getattr(data, field)
  if count > len(rows):
    rule = f"must be at most {len(rows)}, all problems of {data.task}"
    fail(f"data.{field}", count, rule)
  return list(rows[: count or None])


def check_trainable(splits: Mapping[str, object], data: DataConfig) -> None:
  """Raises ConfigError if the splits of a run lack `train` or `test`."""
  for name in ("train", "test"):
    if name not in splits:
      fail(
          "data.split",
          data.split,
          f"{data.task} has no published {name} problems; 80_20 makes train and"
          " test from the split that it has",
      )


def note(data: DataConfig) -> str | None:
  """Returns the line to print beside numbers on an unusual test split."""
  if data.split != "80_20":
    return None
  return (
      f"train and test are parts (80/20, seed {data.split_seed}) of one"
      f" published split of {data.task}; do not compare its numbers with those"
      f" on the published test of {data.task}"
  )


def fingerprint(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
  """Returns the SHA-256 of the problems of each split, in order."""
  found = {}
  for name, rows in splits.items():
    digest = hashlib.sha256()
    for row in rows:
      for part in (row.question, row.answer, row.solution):
        digest.update(part.encode() + b"\0")
    found[name] = digest.hexdigest()
  return found
