"""Data sets: their files, the conversion of a row, and how runs use them.

To add a data set, add an entry to `_ALL` and its name to
`config.data.PUBLISHED`. A new form of rows also needs a converter.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from iapo_jax.data.examples import Example
from iapo_jax.data.rows import columns_of, example, solution_of, text_of

_LETTERS = "ABCDEFGHIJ"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your"
    " response should be of the form Answer: $Answer (without quotes) where"
    " $Answer is the answer to the problem.\n\n"
)
_DAPO_SUFFIX = (
    '\n\nRemember to put your answer on its own line after "Answer:".'
)

_INTEGER = "The answer is a single integer."
_SUM = Example("What is 2 + 2?", "4", "Two and two more make four.")
_OPENAI = (
    "https://raw.githubusercontent.com/openai/grade-school-math/"
    "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data"
)
_CHOICES = "https://s3.amazonaws.com/commensenseqa"
_HUB = "https://huggingface.co/datasets"
_AIME25 = (
    f"{_HUB}/opencompass/AIME2025/resolve/"
    "a6ad95f611d72cf628a80b58bd0432ef6638f958"
)


@dataclasses.dataclass(frozen=True)
class Download:
  """A file to fetch, checked by size in bytes and SHA-256.

  `url` is pinned to a revision if the host has revisions.
  """

  split: str
  url: str
  size: int
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """What prompts need to know of a data set.

  Attributes:
    name: the value of `config.data.task`.
    form: the sentence of the prompt that names the form of answers.
    worked: the worked example of the prompt.
  """

  name: str
  form: str
  worked: Example = _SUM


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet(Kind):
  """A published data set, or that of the user.

  Attributes:
    homepage: URL of its description.
    convert: turns a row into an example; raises ValueError for another form.
    files: patterns of local file names by published split; the first pattern
      that matches is used.
    downloads: the files to fetch; none for `own`.
    rows: published number of rows by split, if known.
    test: the published split on which runs are tested; empty for none.
    has_solutions: whether rows have worked solutions.
    keeps_columns: whether examples keep the other columns of their rows.
    repeats: whether rows may repeat a problem; only the first one is used.
    version: of the conversion; raise it when `convert` gives other examples.
  """

  homepage: str
  convert: Callable[[Mapping[str, Any]], Example]
  files: Mapping[str, tuple[str, ...]]
  downloads: tuple[Download, ...] = ()
  rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  test: str = "test"
  has_solutions: bool = False
  keeps_columns: bool = False
  repeats: bool = False
  version: str = "1.0.0"


def from_gsm8k(row: Mapping[str, Any]) -> Example:
  """Converts `question` and `answer`, a solution that ends in `#### N`.

  Removes the marks of the calculator, and commas from the answer. Like every
  converter, raises ValueError for a row of another form.
  """
  solution, mark, answer = text_of(row, "answer").rpartition("####")
  if not mark:
    raise ValueError("answer: must end in '#### N'")
  solution = _CALCULATOR.sub("", solution).strip()
  answer = answer.strip().replace(",", "")
  return example(text_of(row, "question"), answer, solution)


def from_math(row: Mapping[str, Any]) -> Example:
  """Converts `problem`, `answer` and, if present, `solution`."""
  question, answer = text_of(row, "problem"), text_of(row, "answer")
  return example(question, answer, solution_of(row))


def from_dapo(row: Mapping[str, Any]) -> Example:
  """Converts DAPO-Math-17k, as published or in its processed form.

  `prompt` is a text or a list of one message. Removes the instructions before
  and after the problem. The answer is `reward_model.ground_truth`, or
  `solution`.
  """
  prompt = row.get("prompt")
  if isinstance(prompt, str):
    question = text_of(row, "prompt")
  else:
    if not prompt or len(prompt) != 1:
      raise ValueError("prompt: must be a text or a list of one message")
    question = text_of(prompt[0], "content")
  has_prefix = question.startswith(_DAPO_PREFIX)
  if has_prefix != question.endswith(_DAPO_SUFFIX):
    raise ValueError(
        "prompt: must have the usual instructions both before and after the"
        " problem, or none"
    )
  question = question.removeprefix(_DAPO_PREFIX).removesuffix(_DAPO_SUFFIX)
  judged = row.get("reward_model")
  if not question.strip():
    raise ValueError("prompt: must have a problem between the instructions")
  source, name = (judged, "ground_truth") if judged else (row, "solution")
  answer = text_of(source, name)
  return example(question.strip(), answer)


def from_commonsense_qa(row: Mapping[str, Any]) -> Example:
  """Converts a question with labelled choices, and the letter `answerKey`.

  Rows of the authors have `question.stem`, and `question.choices` as a list of
  `label` and `text`. Rows of the hub have `question`, and `choices` with the
  lists `label` and `text`.
  """
  question, choices = row.get("question"), row.get("choices")
  if isinstance(question, Mapping):
    question, choices = text_of(question, "stem"), question.get("choices")
  else:
    question = text_of(row, "question")
  if isinstance(choices, Mapping):
    pairs = list(zip(choices["label"], choices["text"], strict=True))
  else:
    pairs = [(text_of(c, "label"), text_of(c, "text")) for c in choices or ()]
  answer = text_of(row, "answerKey")
  labels = [label for label, _ in pairs]
  if not pairs or labels != list(_LETTERS[: len(pairs)]):
    raise ValueError(f"choices: must have the labels A, B, ..., not {labels}")
  if answer not in labels:
    raise ValueError(f"answerKey = {answer!r}: must be one of {labels}")
  lines = [question, *(f"{label}. {choice}" for label, choice in pairs)]
  return example("\n".join(lines), answer)


def from_aime(row: Mapping[str, Any]) -> Example:
  """Converts `problem` or `question`, and `answer` in 0 .. 999.

  Capitals in field names do not matter.
  """
  lower = {name.lower(): value for name, value in row.items()}
  name = "problem" if "problem" in lower else "question"
  answer = text_of(lower, "answer")
  answer = answer.replace("^\\circ", "").strip(" $.") or answer
  if not answer.isdecimal() or int(answer) > 999:
    raise ValueError(f"answer = {answer!r}: must be an integer in 0 .. 999")
  return example(text_of(lower, name), str(int(answer)))


def from_own(row: Mapping[str, Any]) -> Example:
  """Converts `question`, `answer` and, if present, `solution`.

  Keeps the other columns, which must be JSON values.
  """
  question, answer = text_of(row, "question"), text_of(row, "answer")
  read = example(question, answer, solution_of(row))
  return dataclasses.replace(read, row=columns_of(row))


def _both(split: str) -> tuple[str, ...]:
  """Returns file name patterns of a split: whole, or in parts as on the hub."""
  return (
      f"{split}.jsonl", f"{split}.parquet", f"{split}-*.parquet",
      f"{split}-*.jsonl",
  )  # fmt: skip


_ALL = (
    DataSet(
        name="gsm8k",
        homepage="https://github.com/openai/grade-school-math",
        convert=from_gsm8k,
        files={"train": _both("train"), "test": _both("test")},
        form=_INTEGER,
        downloads=(
            Download(
                "train", f"{_OPENAI}/train.jsonl", 4_166_206,
                "17f347dc51477c50d4efb83959dbb7c5"
                "6297aba886e5544ee2aaed3024813465",
            ),
            Download(
                "test", f"{_OPENAI}/test.jsonl", 749_738,
                "3730d312f6e3440559ace48831e51066"
                "acaca737f6eabec99bccb9e4b3c39d14",
            ),
        ),
        rows={"train": 7473, "test": 1319},
        has_solutions=True,
    ),
    DataSet(
        name="math500",
        homepage="https://github.com/openai/prm800k",
        convert=from_math,
        files={"test": _both("test")},
        form="The answer is an expression in LaTeX.",
        downloads=(
            Download(
                "test",
                f"{_HUB}/HuggingFaceH4/MATH-500/resolve/"
                "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be/test.jsonl",
                446_564,
                "35dc41080a3680858b27fa7e0533d2d5"
                "47825316fc5dafe5d316f4ccc5a06132",
            ),
        ),
        rows={"test": 500},
        has_solutions=True,
    ),
    DataSet(
        name="dapo_math",
        homepage=f"{_HUB}/BytedTsinghua-SIA/DAPO-Math-17k",
        convert=from_dapo,
        files={"train": ("dapo-math-17k.parquet", *_both("train"))},
        form=_INTEGER,
        downloads=(
            Download(
                "train",
                f"{_HUB}/BytedTsinghua-SIA/DAPO-Math-17k/resolve/"
                "65877096c24ffa7abc4e4fa5edb95cf3413a5674/"
                "data/dapo-math-17k.parquet",
                299_363_855,
                "534375d6bb8630d22ab46a56e11f2ffe"
                "c1d288d8f7d04099bc82d68948705941",
            ),
        ),
        test="",
        repeats=True,
    ),
    DataSet(
        name="commonsense_qa",
        homepage="https://www.tau-nlp.org/commonsenseqa",
        convert=from_commonsense_qa,
        files={
            "train": ("train_rand_split.jsonl", *_both("train")),
            "validation": ("dev_rand_split.jsonl", *_both("validation")),
        },
        form="The answer is the letter of one choice.",
        downloads=(
            Download(
                "train", f"{_CHOICES}/train_rand_split.jsonl", 3_785_890,
                "58ffa3c8472410e24b8c43f423d89c8a"
                "003d8284698a6ed7874355dedd09a2fb",
            ),
            Download(
                "validation", f"{_CHOICES}/dev_rand_split.jsonl", 471_653,
                "3210497fdaae614ac085d9eb873dd7f4"
                "d49b6f965a93adadc803e1229fd8a02a",
            ),
        ),
        rows={"train": 9741, "validation": 1221},
        test="validation",  # the published test rows have no answers
        worked=Example(
            "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nE. 22",
            "B",
            "Two and two more make four, which is choice B.",
        ),
    ),
    DataSet(
        name="aime24",
        homepage=f"{_HUB}/HuggingFaceH4/aime_2024",
        convert=from_aime,
        files={
            "test": ("aime-2024.parquet", *_both("test"), *_both("train"))
        },
        form=_INTEGER,
        downloads=(
            Download(
                "test",
                f"{_HUB}/HuggingFaceH4/aime_2024/resolve/"
                "2fe88a2f1091d5048c0f36abc874fb997b3dd99a/"
                "data/train-00000-of-00001.parquet",
                81_670,
                "26139847601a5037c237d5928b195e72"
                "60ca8074cf4f264b794af42847f79ccf",
            ),
        ),
        rows={"test": 30},
        repeats=True,  # some copies have each problem 32 times
    ),
    DataSet(
        name="aime25",
        homepage=f"{_HUB}/opencompass/AIME2025",
        convert=from_aime,
        files={"test": ("aime2025-I*.jsonl", *_both("test"), *_both("train"))},
        form=_INTEGER,
        downloads=(
            Download(
                "test", f"{_AIME25}/aime2025-I.jsonl", 5_764,
                "b91b3c96f05d9635d2a0692b124ebe02"
                "3c1ff59cb19c074275e6c4b349d0659e",
            ),
            Download(
                "test", f"{_AIME25}/aime2025-II.jsonl", 6_285,
                "16a2dcfbbf9db1b11f8a69a3ba5e4cac"
                "73e3641b19a37e2307e9c12240bbed5e",
            ),
        ),
        rows={"test": 30},
    ),
    DataSet(
        name="own",
        homepage="",
        convert=from_own,
        files={"train": _both("train"), "test": _both("test")},
        form="The answer is short: a number, an expression or a few words.",
        has_solutions=True,
        keeps_columns=True,
        version="1.2.0",
    ),
)
DATA_SETS = {data.name: data for data in _ALL}
