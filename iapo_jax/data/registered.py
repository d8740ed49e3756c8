"""Data sets of TensorFlow Datasets by their names, read without TensorFlow.

Others than those of `builders`, which are published elsewhere, or anybody's own
builder: with splits `train` and `test`, and text features `question`, `answer`
and perhaps `solution`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from iapo_jax.core import errors
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import examples
from iapo_jax.data.examples import Example

PREFIX = "tfds:"
_SPLITS = ("train", "test")


def load(source: str, root: str) -> dict[str, list[Example]]:
  """The splits of a data set, prepared if need be.

  Args:
    source: `tfds:` and a name of TFDS (`NAME`, `NAME/CONFIG`,
      `NAME:VERSION`).
    root: where prepared data sets are kept.

  Returns:
    The examples of `train` and `test`, in the order that TFDS keeps.

  Raises:
    ConfigError: where TFDS has no such data set, cannot prepare it, or its
      rows are something else.
  """
  name = source.removeprefix(PREFIX)
  try:
    found = tfds.data_source(
        name,
        split=list(_SPLITS),
        data_dir=root,
        builder_kwargs={"file_format": "array_record"},
    )
  except Exception as error:  # of TFDS, the network, a builder of anybody's
    raise ConfigError(
        f"config.data.source_dir = {source!r}: TensorFlow Datasets says:"
        f" {errors.reason(error)}"
    ) from error
  return {
      split: [_example(source, split, i, row) for i, row in enumerate(rows)]
      for split, rows in zip(_SPLITS, found, strict=True)
  }


def _example(
    source: str, split: str, index: int, row: Mapping[str, Any]
) -> Example:
  try:
    return examples.from_own({name: _plain(row[name]) for name in row})
  except ValueError as error:
    raise ConfigError(
        f"config.data.source_dir = {source!r}: row {index} of {split}: {error}"
    ) from error


def _plain(value: Any) -> Any:
  """Texts and numbers as JSON has them."""
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  return value.item() if isinstance(value, np.generic) else value
