"""Makes the train, validation and test problems of a published data set."""

import dataclasses
import hashlib
import json
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


@dataclasses.dataclass(frozen=True)
class Repeats:
  """Problems of a split that stand elsewhere, too, but for white space.

  Attributes:
    total: number of problems.
    within: those that an earlier problem of their split repeats.
    trained: those of validation that are in train; those of test that are in
      train or validation. 0 for train.
    first: the first question counted in `trained`; empty for none.
  """

  total: int
  within: int
  trained: int
  first: str

  @property
  def share(self) -> float:
    """The share of problems counted in `trained`."""
    return self.trained / max(self.total, 1)


def count_repeats(
    splits: Mapping[str, Sequence[Example]],
) -> dict[str, Repeats]:
  """Counts repeated problems, by split; problems are compared by question."""
  found, trained = {}, set()
  for name in ("train", "validation", "test"):
    if name in splits:
      questions = [" ".join(row.question.split()) for row in splits[name]]
      again = [question for question in questions if question in trained]
      within = len(questions) - len(set(questions))
      first = again[0] if again else ""
      found[name] = Repeats(len(questions), within, len(again), first)
      trained |= set(questions)
  return found


def check_overlap(repeats: Mapping[str, Repeats], data: DataConfig) -> None:
  """Raises ConfigError if too many test problems are also train problems."""
  test = repeats.get("test")
  if test and test.share > data.max_overlap:
    fail(
        "data.max_overlap",
        data.max_overlap,
        f"{test.trained} of {test.total} test problems are also train or"
        f" validation problems, the first is {test.first[:60]!r}; remove them"
        " from one of the splits, or allow them with"
        " --config.data.max_overlap=1",
    )


def describe_repeats(repeats: Mapping[str, Repeats]) -> str:
  """Describes the counts in a line."""
  within = ", ".join(
      f"{x.within} of {x.total} {name}" for name, x in repeats.items()
  )
  line = f"{within} problems repeat another of their split"
  places = {"validation": "train", "test": "train or validation"}
  for name, place in places.items():
    if "train" in repeats and name in repeats:
      line += f"; {repeats[name].trained} {name} problems are also in {place}"
  return line


def note(
    data: DataConfig, repeats: Mapping[str, Repeats] | None = None
) -> str | None:
  """Returns the line to print beside numbers on an unusual test split."""
  notes = []
  if data.split == "80_20":
    notes.append(
        f"train and test are parts (80/20, seed {data.split_seed}) of one"
        f" published split of {data.task}; do not compare its numbers with"
        f" those on the published test of {data.task}"
    )
  test = (repeats or {}).get("test")
  if test and test.share > DataConfig().max_overlap:
    notes.append(
        f"{test.trained} of {test.total} test problems of {data.task} are also"
        " train or validation problems"
    )
  return "; ".join(notes) or None


def fingerprint(splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
  """Returns the SHA-256 of the problems of each split, in order.

  Problems without columns have the fingerprint that they had before rows could
  have columns, so that older runs resume.
  """
  found = {}
  for name, rows in splits.items():
    digest = hashlib.sha256()
    for row in rows:
      for part in (row.question, row.answer, row.solution):
        digest.update(part.encode() + b"\0")
      if row.row:
        columns = json.dumps(row.row, sort_keys=True)
        digest.update(columns.encode() + b"\0")
    found[name] = digest.hexdigest()
  return found
