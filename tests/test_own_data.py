"""Data of one's own in files: numbers, texts, fields."""

import numpy as np
import pyarrow
import pytest
import texts
from pyarrow import parquet

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import builders, published
from iapo_jax.data.examples import Example


def load(folder, prepared):
  return builders.load(
      "own", source_dir=str(folder), prepared_dir=str(prepared)
  )


def test_own_files(tmp_path):
  rows = [{"question": f"What is {i}?", "answer": i} for i in range(6)]
  for split in ("train", "test"):
    texts.write_jsonl(tmp_path / f"{split}.jsonl", rows)
  found = load(tmp_path, tmp_path / "prepared")
  assert found["test"][2] == Example("What is 2?", "2")
  assert len(found["train"]) == 6
  with (tmp_path / "test.jsonl").open("a") as file:
    file.write('{"problem": "x", "answer": "y"}')
  rule = r"test.jsonl: row 7 is not a row of own: question = None"
  with pytest.raises(ConfigError, match=rule):
    load(tmp_path, tmp_path / "prepared")
  with pytest.raises(ConfigError, match=r"source_dir = '': must be a folder"):
    config_lib.parse({"data": {"task": "own"}})


def test_numbers_are_spelled_as_in_their_file(tmp_path):
  spelled = ["42", "0.5", "2.0", "1e-07", "1E5", "1.50", "1e400", "7" * 5000]
  for split in ("train", "test"):
    (tmp_path / f"{split}.jsonl").write_text(
        "".join(f'{{"question": "q", "answer": {x}}}\n' for x in spelled)
    )
  found = load(tmp_path, tmp_path / "prepared")["train"]
  assert [row.answer for row in found] == spelled


def test_numbers_of_parquet_have_the_fewest_digits(tmp_path):
  """float16, float32 and float64 alike: 0.1 is 0.1."""
  for kind in (pyarrow.float16(), pyarrow.float32(), pyarrow.float64()):
    column = pyarrow.array(np.array([0.1, 2.0], kind.to_pandas_dtype()), kind)
    table = pyarrow.table({"question": ["a", "b"], "answer": column})
    parquet.write_table(table, tmp_path / "train.parquet")
    found = list(builders._rows(tmp_path / "train.parquet"))
    assert [published.from_own(x).answer for x in found] == ["0.1", "2.0"]


def test_text_of_parquet_that_is_not_utf8(tmp_path):
  size, offsets, content = 1, *pyarrow.array([b"\xff"]).buffers()[1:]
  column = pyarrow.Array.from_buffers(
      pyarrow.string(), size, [None, offsets, content]
  )
  path = tmp_path / "train.parquet"
  parquet.write_table(pyarrow.table({"question": column}), path)
  with pytest.raises(ConfigError) as error:
    list(builders._rows(path))
  assert str(error.value) == f"{path}: has text that is not UTF-8"
