"""Reads data sets that TensorFlow Datasets knows by name, without TensorFlow.

They must have the splits `train` and `test`, and the text features `question`,
`answer` and optionally `solution`. A user's builder works if it was imported.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from iapo_jax.core import errors
from iapo_jax.data import published
from iapo_jax.data.examples import Example

PREFIX = "tfds:"
_SPLITS = ("train", "test")


def load(source: str, root: str) -> dict[str, list[Example]]:
  """Returns `train` and `test` in the order of TFDS; prepares them if needed.

  Args:
    source: `tfds:NAME`, `tfds:NAME/CONFIG` or `tfds:NAME:VERSION`.
    root: the folder of prepared data sets.

  Raises:
    ConfigError: if TFDS has no such data set or cannot prepare it, or a row
      has another form.
  """
  try:
    found = tfds.data_source(
        source.removeprefix(PREFIX),
        split=list(_SPLITS),
        data_dir=root,
        builder_kwargs={"file_format": "array_record"},
    )
  except Exception as error:  # from TFDS, the network or a user's builder
    rule = f"TensorFlow Datasets cannot load it: {errors.reason(error)}"
    errors.fail("data.source_dir", source, rule)
  splits: dict[str, list[Example]] = {}
  for split, rows in zip(_SPLITS, found, strict=True):
    splits[split] = []
    for index, row in enumerate(rows):
      try:
        plain = {name: _plain(row[name]) for name in row}
        splits[split].append(published.from_own(plain))
      except ValueError as error:
        rule = f"row {index} of {split}: {error}"
        errors.fail("data.source_dir", source, rule)
  return splits


def _plain(value: Any) -> Any:
  """Converts bytes and NumPy scalars to Python strings and numbers."""
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  return value.item() if isinstance(value, np.generic) else value
