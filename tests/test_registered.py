"""Data sets that TensorFlow Datasets knows by name."""

import functools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from iapo_jax.core.errors import ConfigError
from iapo_jax.data import builders, registered
from iapo_jax.data.examples import Example


class SumsOfTests(tfds.core.GeneratorBasedBuilder):
  """A builder as anybody would register it: of five and of two sums."""

  VERSION = tfds.core.Version("1.0.0")
  FIELDS = ("question", "answer", "solution")

  def _info(self):
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(dict.fromkeys(self.FIELDS, text))
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    numbers = {"train": range(5), "test": (7, 8)}
    return {k: self._generate_examples(v) for k, v in numbers.items()}

  def _generate_examples(self, numbers):
    for i in numbers:
      row = {
          "question": f"{i} + {i}?",
          "answer": str(2 * i),
          "solution": f"Twice {i}, é.",
          "level": "1",
      }
      yield i, {name: row[name] for name in self.FIELDS}


class SumsWithLevels(SumsOfTests):
  """The same with another column."""

  FIELDS = (*SumsOfTests.FIELDS, "level")


def test_other_features_are_columns(tmp_path):
  found = builders.load(
      "own", source_dir="tfds:sums_with_levels", prepared_dir=str(tmp_path)
  )
  assert [x.row for x in found["train"]] == [{"level": "1"}] * 5


def test_numbers_and_bytes_that_are_no_text():
  """A row of NumPy's, as `as_data_source` gives it."""
  row = {"question": b"a", "answer": np.float32(0.1)}
  plain = {k: registered._plain(k, v) for k, v in row.items()}
  assert plain == {"question": "a", "answer": 0.1}
  assert registered._plain("answer", np.int8(3)) == 3
  tests = {"in": np.array([b"a", b"b"], object), "out": np.eye(2)}
  assert registered._plain("tests", tests) == {
      "in": ["a", "b"], "out": [[1.0, 0.0], [0.0, 1.0]],
  }  # fmt: skip
  with pytest.raises(ValueError, match=r"tests.in = b'\\xff': is not UTF-8"):
    registered._plain("tests", {"in": [b"\xff"]})
  with pytest.raises(ValueError, match=r"question = b'\\xff': is not UTF-8"):
    registered._plain("question", b"\xff")


def test_what_is_prepared_needs_no_folder_to_write(tmp_path):
  """Not even the lock, which a folder of that name makes impossible."""
  load = functools.partial(
      builders.load, "own", source_dir="tfds:sums_of_tests",
      prepared_dir=str(tmp_path),
  )  # fmt: skip
  (tmp_path / ".own.lock").mkdir()
  with pytest.raises(ConfigError, match=r"prepared_dir = .*must be a writable"):
    load()
  (tmp_path / ".own.lock").rmdir()
  found = load()
  (tmp_path / ".own.lock").unlink()
  (tmp_path / ".own.lock").mkdir()
  assert load() == found


def test_rows_by_the_name(tmp_path):
  place = str(tmp_path)
  found = builders.load(
      "own", source_dir="tfds:sums_of_tests", prepared_dir=place
  )
  assert sorted(found["train"], key=lambda x: x.answer) == [
      Example(f"{i} + {i}?", str(2 * i), f"Twice {i}, é.") for i in range(5)
  ]
  assert {x.answer for x in found["test"]} == {"14", "16"}
  # What is prepared is read, in the same order.
  assert found == builders.load(
      "own", source_dir="tfds:sums_of_tests:1.0.0", prepared_dir=place
  )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody_has_this", r"= 'tfds:nobody_has_this': TensorFlow Datasets"),
        ("sums_of_tests:9.9.9", r"TensorFlow Datasets cannot load it: "),
    ],
)
def test_names_and_rows_that_will_not_do(name, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    builders.load("own", source_dir=f"tfds:{name}", prepared_dir=str(tmp_path))
