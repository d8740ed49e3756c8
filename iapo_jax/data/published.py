"""Data sets: the places and sums of their files, and their conversion."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from iapo_jax.data import examples
from iapo_jax.data.examples import Example


@dataclasses.dataclass(frozen=True)
class Download:
  """A file to fetch, checked by its size in bytes and its SHA-256.

  `url` is pinned to a revision if the host has revisions.
  """

  url: str
  size: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A published data set, or the user's own.

  Attributes:
    name: the value of `config.data.task`.
    homepage: URL of its description.
    convert: turns a row into an example; raises ValueError for another form.
    files: patterns of local file names by published split; the first that
      matches counts.
    downloads: files to fetch by published split; empty for `own`.
    rows: published number of rows by split, if known.
    test: the published split that judges runs; empty for none.
    form: the sentence of the prompt that says which form answers have.
    worked: the worked example of the prompt.
    has_solutions: whether rows have worked solutions.
    repeats: whether rows may repeat a problem; the first counts.
  """

  name: str
  homepage: str
  convert: Callable[[Mapping[str, Any]], Example]
  files: Mapping[str, tuple[str, ...]]
  downloads: Mapping[str, tuple[Download, ...]]
  rows: Mapping[str, int]
  test: str
  form: str
  worked: Example
  has_solutions: bool = False
  repeats: bool = False


_INTEGER = "The answer is a single integer."
_SUM = Example("What is 2 + 2?", "4", "Two and two more make four.")


@functools.cache
def data_set(name: str) -> DataSet:
  """Returns a data set by its name, one of `data_config.READ`."""
  return {
      "gsm8k": _gsm8k,
      "math500": _math500,
      "dapo_math": _dapo_math,
      "commonsense_qa": _commonsense_qa,
      "aime24": _aime24,
      "aime25": _aime25,
      "own": _own,
  }[name]()


def _own() -> DataSet:
  return DataSet(
      name="own",
      homepage="",
      convert=examples.from_own,
      files={"train": _both("train"), "test": _both("test")},
      downloads={},
      rows={},
      test="test",
      form="The answer is short: a number, an expression or a few words.",
      worked=_SUM,
      has_solutions=True,
  )


def _on_hub(
    repository: str, revision: str, path: str, size: int, sha256: str
) -> Download:
  """Returns a file on the Hugging Face hub, at a fixed revision."""
  url = f"https://huggingface.co/datasets/{repository}/resolve/{revision}/{path}"
  return Download(url, size, sha256)


def _both(split: str) -> tuple[str, ...]:
  """Returns patterns of the files of a split, whole or in the hub's parts."""
  return (
      f"{split}.jsonl", f"{split}.parquet", f"{split}-*.parquet",
      f"{split}-*.jsonl",
  )  # fmt: skip


def _gsm8k() -> DataSet:
  folder = (
      "https://raw.githubusercontent.com/openai/grade-school-math/"
      "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
  )
  return DataSet(
      name="gsm8k",
      homepage="https://github.com/openai/grade-school-math",
      convert=examples.from_gsm8k,
      files={"train": _both("train"), "test": _both("test")},
      downloads={
          "train": (
              Download(
                  f"{folder}/train.jsonl",
                  4_166_206,
                  "17f347dc51477c50d4efb83959dbb7c5"
                  "6297aba886e5544ee2aaed3024813465",
              ),
          ),
          "test": (
              Download(
                  f"{folder}/test.jsonl",
                  749_738,
                  "3730d312f6e3440559ace48831e51066"
                  "acaca737f6eabec99bccb9e4b3c39d14",
              ),
          ),
      },
      rows={"train": 7473, "test": 1319},
      test="test",
      form=_INTEGER,
      worked=_SUM,
      has_solutions=True,
  )


def _math500() -> DataSet:
  return DataSet(
      name="math500",
      homepage="https://github.com/openai/prm800k",
      convert=examples.from_math,
      files={"test": _both("test")},
      downloads={
          "test": (
              _on_hub(
                  "HuggingFaceH4/MATH-500",
                  "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
                  "test.jsonl",
                  446_564,
                  "35dc41080a3680858b27fa7e0533d2d5"
                  "47825316fc5dafe5d316f4ccc5a06132",
              ),
          ),
      },
      rows={"test": 500},
      test="test",
      form="The answer is an expression in LaTeX.",
      worked=_SUM,
      has_solutions=True,
  )


def _dapo_math() -> DataSet:
  return DataSet(
      name="dapo_math",
      homepage="https://huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k",
      convert=examples.from_dapo,
      files={"train": ("dapo-math-17k.parquet", *_both("train"))},
      downloads={
          "train": (
              _on_hub(
                  "BytedTsinghua-SIA/DAPO-Math-17k",
                  "65877096c24ffa7abc4e4fa5edb95cf3413a5674",
                  "data/dapo-math-17k.parquet",
                  299_363_855,
                  "534375d6bb8630d22ab46a56e11f2ffe"
                  "c1d288d8f7d04099bc82d68948705941",
              ),
          ),
      },
      rows={},
      test="",
      form=_INTEGER,
      worked=_SUM,
      repeats=True,
  )


def _commonsense_qa() -> DataSet:
  folder = "https://s3.amazonaws.com/commensenseqa"
  return DataSet(
      name="commonsense_qa",
      homepage="https://www.tau-nlp.org/commonsenseqa",
      convert=examples.from_commonsense_qa,
      files={
          "train": ("train_rand_split.jsonl", *_both("train")),
          "validation": ("dev_rand_split.jsonl", *_both("validation")),
      },
      downloads={
          "train": (
              Download(
                  f"{folder}/train_rand_split.jsonl",
                  3_785_890,
                  "58ffa3c8472410e24b8c43f423d89c8a"
                  "003d8284698a6ed7874355dedd09a2fb",
              ),
          ),
          "validation": (
              Download(
                  f"{folder}/dev_rand_split.jsonl",
                  471_653,
                  "3210497fdaae614ac085d9eb873dd7f4"
                  "d49b6f965a93adadc803e1229fd8a02a",
              ),
          ),
      },
      rows={"train": 9741, "validation": 1221},
      test="validation",  # the published test rows have no answers
      form="The answer is the letter of one choice.",
      worked=Example(
          "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nE. 22",
          "B",
          "Two and two more make four, which is choice B.",
      ),
  )


def _aime24() -> DataSet:
  return DataSet(
      name="aime24",
      homepage="https://huggingface.co/datasets/HuggingFaceH4/aime_2024",
      convert=examples.from_aime,
      files={
          "test": ("aime-2024.parquet", *_both("test"), *_both("train"))
      },
      downloads={
          "test": (
              _on_hub(
                  "HuggingFaceH4/aime_2024",
                  "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
                  "data/train-00000-of-00001.parquet",
                  81_670,
                  "26139847601a5037c237d5928b195e72"
                  "60ca8074cf4f264b794af42847f79ccf",
              ),
          ),
      },
      rows={"test": 30},
      test="test",
      form=_INTEGER,
      worked=_SUM,
      repeats=True,  # some copies have each problem 32 times
  )


def _aime25() -> DataSet:
  return DataSet(
      name="aime25",
      homepage="https://huggingface.co/datasets/opencompass/AIME2025",
      convert=examples.from_aime,
      files={"test": ("aime2025-I*.jsonl", *_both("test"), *_both("train"))},
      downloads={
          "test": (
              _on_hub(
                  "opencompass/AIME2025",
                  "a6ad95f611d72cf628a80b58bd0432ef6638f958",
                  "aime2025-I.jsonl",
                  5_764,
                  "b91b3c96f05d9635d2a0692b124ebe02"
                  "3c1ff59cb19c074275e6c4b349d0659e",
              ),
              _on_hub(
                  "opencompass/AIME2025",
                  "a6ad95f611d72cf628a80b58bd0432ef6638f958",
                  "aime2025-II.jsonl",
                  6_285,
                  "16a2dcfbbf9db1b11f8a69a3ba5e4cac"
                  "73e3641b19a37e2307e9c12240bbed5e",
              ),
          ),
      },
      rows={"test": 30},
      test="test",
      form=_INTEGER,
      worked=_SUM,
  )
