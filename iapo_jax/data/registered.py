"""Reads data sets that TensorFlow Datasets knows by name, without TensorFlow.

They must have the splits `train` and `test`, and the features `question`,
`answer` and optionally `solution`, texts or numbers. Other features become
columns. A user's builder works if it was imported.
"""

import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from iapo_jax.core import errors
from iapo_jax.data import published
from iapo_jax.data.examples import Example

PREFIX = "tfds:"
_SPLITS = ("train", "test")


def find(source: str, root: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Returns the builder of a data set, whether or not it is prepared.

  Args:
    source: `tfds:NAME`, `tfds:NAME/CONFIG` or `tfds:NAME:VERSION`.
    root: the folder of prepared data sets.

  Raises:
    ConfigError: if TFDS has no such data set.
  """
  name = source.removeprefix(PREFIX)
  try:
    return tfds.builder(
        name, data_dir=str(root), file_format="array_record"
    )
  except Exception as error:  # from TFDS, the network or a user's builder
    raise _failed(source, error) from error


def prepare(source: str, builder: tfds.core.DatasetBuilder) -> None:
  """Prepares a data set; raises ConfigError if TFDS cannot."""
  try:
    builder.download_and_prepare()
  except Exception as error:
    raise _failed(source, error) from error


def read(
    source: str, builder: tfds.core.DatasetBuilder
) -> dict[str, list[Example]]:
  """Returns `train` and `test` of prepared data, in the order of TFDS.

  Raises:
    ConfigError: if a split is missing or a row has another form.
  """
  try:
    found = builder.as_data_source(list(_SPLITS))
  except Exception as error:
    raise _failed(source, error) from error
  splits: dict[str, list[Example]] = {}
  for split, rows in zip(_SPLITS, found, strict=True):
    splits[split] = []
    for index, row in enumerate(rows):
      try:
        plain = {name: _plain(name, row[name]) for name in row}
        splits[split].append(published.from_own(plain))
      except ValueError as error:
        rule = f"row {index} of {split}: {error}"
        errors.fail("data.source_dir", source, rule)
  return splits


def _failed(source: str, error: Exception) -> errors.ConfigError:
  rule = f"TensorFlow Datasets cannot load it: {errors.reason(error)}"
  return errors.ConfigError(f"config.data.source_dir = {source!r}: {rule}")


def _plain(name: str, value: Any) -> Any:
  """Converts bytes and NumPy values to Python strings, numbers and lists."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise ValueError(f"{name} = {value!r}: is not UTF-8") from error
  if isinstance(value, dict):
    return {key: _plain(f"{name}.{key}", part) for key, part in value.items()}
  if isinstance(value, list | np.ndarray):
    return [_plain(name, part) for part in value]
  if not isinstance(value, np.generic):
    return value
  plain = value.item()
  # As a Python float, the float32 0.1 has 18 digits.
  return float(str(value)) if isinstance(plain, float) else plain
