"""Published data sets: their rows, and the builders that prepare them."""

import dataclasses
import datetime
import decimal
import functools
import hashlib
import http.server
import math
import re
import socket
import subprocess
import sys
import threading

import pyarrow
import pytest
import texts
import tiny
from pyarrow import parquet

from iapo_jax.config import data as data_config
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import builders, published, splits
from iapo_jax.data.examples import Example
from iapo_jax.data.published import Download
from iapo_jax.data.rows import Spelled

DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your"
    " response should be of the form Answer: $Answer (without quotes) where"
    " $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'


def dapo(question, answer):
  content = DAPO_BEFORE + question + DAPO_AFTER
  return {
      "prompt": [{"content": content, "role": "user"}],
      "reward_model": {"ground_truth": answer, "style": "rule"},
  }


CHOICES = [
    {"label": label, "text": word}
    for label, word in zip("ABC", ("ice", "tea", "ink"), strict=True)
]


ROWS = [
    (
        published.from_gsm8k,
        {"question": "How many? ",
         "answer": "He has 48/2 = <<48/2=24>>24.\nSo <<24*100=2400>>2400."
                   "\n#### 2,400"},
        Example("How many?", "2400", "He has 48/2 = 24.\nSo 2400."),
    ),
    (
        published.from_math,
        {"problem": "Find $x$.", "answer": r"\frac12", "solution": "So.",
         "level": 3},
        Example("Find $x$.", r"\frac12", "So."),
    ),
    (published.from_dapo, dapo("What is $1+1$?", "2"),
     Example("What is $1+1$?", "2")),
    # In its processed form.
    (published.from_dapo, {"prompt": "What?", "solution": "-3"},
     Example("What?", "-3")),
    (
        published.from_commonsense_qa,
        {"answerKey": "B",
         "question": {"stem": "What is hot?", "choices": CHOICES}},
        Example("What is hot?\nA. ice\nB. tea\nC. ink", "B"),
    ),
    # As the hub's parquet has it.
    (
        published.from_commonsense_qa,
        {"answerKey": "B", "question": "What is hot?",
         "choices": {"label": list("ABC"), "text": ["ice", "tea", "ink"]}},
        Example("What is hot?\nA. ice\nB. tea\nC. ink", "B"),
    ),
    (published.from_aime, {"problem": "Find n.", "answer": "045"},
     Example("Find n.", "45")),
    (published.from_aime, {"question": "Find n.", "answer": r"336^\circ"},
     Example("Find n.", "336")),
    (published.from_aime, {"ID": "1", "Problem": "Find n.", "Answer": 7},
     Example("Find n.", "7")),
    (published.from_own, {"question": "Why?", "answer": " so "},
     Example("Why?", "so")),
    (published.from_own, {"question": "Why?", "answer": 3, "solution": "As."},
     Example("Why?", "3", "As.")),
    (published.from_own, {"question": 3, "answer": 2.0, "solution": None},
     Example("3", "2.0")),
    (published.from_own, {"question": "Why?", "answer": 1e-7, "solution": 0},
     Example("Why?", "1e-07", "0")),
    (published.from_own,
     {"question": "Why?", "answer": decimal.Decimal("0.10"), "solution": " "},
     Example("Why?", "0.10")),
    # Numbers of a jsonl file, as it spells them.
    (published.from_own,
     {"level": Spelled("3"), "answer": Spelled("1.50"), "question": "Why?",
      "tests": [{"in": [Spelled("1e3"), "2"], "out": None}, True]},
     Example("Why?", "1.50", row={
         "level": 3, "tests": [{"in": [1000.0, "2"], "out": None}, True],
     })),
    # Whole completions, whose answers are spelled in other ways.
    (published.from_own,
     {"question": "In <answer>?", "answer": 4,
      "solution": "<think>\nSo 4.\n</think> <answer>4.0</answer>\n"},
     Example("In <answer>?", "4", "So 4.")),
    (published.from_math,
     {"problem": "What?", "answer": r"\frac12",
      "solution": r"So.</think><answer>\boxed{1/2}</answer>"},
     Example("What?", r"\frac12", "So.")),
]  # fmt: skip


@pytest.mark.parametrize(("convert", "row", "expected"), ROWS)
def test_rows(convert, row, expected):
  assert convert(row) == expected


@pytest.mark.parametrize(
    ("convert", "row", "message"),
    [
        (published.from_gsm8k, {"question": "How?", "answer": "24"}, "#### N"),
        (published.from_gsm8k, {"answer": "#### 2"}, "question = None"),
        (published.from_math, {"problem": "x", "answer": " "}, "answer = ' '"),
        (published.from_dapo, {"prompt": DAPO_BEFORE + "x", "solution": "2"},
         "instructions both before and after the problem, or none"),
        (published.from_dapo,
         {"prompt": DAPO_BEFORE + " " + DAPO_AFTER, "solution": "2"},
         "must have a problem between the instructions"),
        (published.from_dapo, {"prompt": [], "solution": "2"}, "one message"),
        (published.from_commonsense_qa,
         {"answerKey": "D", "question": {"stem": "x", "choices": CHOICES}},
         "'D': must be one of"),
        (published.from_commonsense_qa,
         {"answerKey": "A", "question": "x",
          "choices": {"label": ["1"], "text": ["y"]}}, "labels A, B"),
        (published.from_aime, {"problem": "x", "answer": "1000"}, "0 .. 999"),
        (published.from_aime, {"problem": "x", "answer": "1/2"}, "0 .. 999"),
        (published.from_own, {"question": "x", "answer": ""}, "answer = ''"),
        (published.from_own,
         {"question": "x", "answer": "y", "id": 3, "day": [datetime.date.min]},
         r"day = \[datetime.date\(1, 1, 1\)\]: must be a JSON value .*convert"),
        *(
            (published.from_own, {"question": "x", "answer": value},
             rf"answer = {re.escape(repr(value))}: must be a text or a finite")
            for value in (True, None, [1], math.nan, math.inf, b"y")
        ),
        (published.from_own, {"question": "x", "answer": "\ud800"},
         r"answer = '\\ud800': must not contain half a surrogate pair"),
        (published.from_own,
         {"question": "x", "answer": "4", "solution": False},
         "solution = False: must be a text or a finite number"),
        (published.from_math,
         {"problem": "x", "answer": "4", "solution": ["y"]},
         r"solution = \['y'\]: must be a text or a finite number"),
        (published.from_own, {"question": "x <think>\n", "answer": "4"},
         "question: must not end in <think>, which every prompt adds"),
        (published.from_own, {"question": "x", "answer": "<answer>4</answer>"},
         "answer = '<answer>4</answer>': must be the answer alone, without"),
        *(
            (published.from_own,
             {"question": "x", "answer": "4", "solution": solution},
             rf"solution = '{solution}': has tags, so it must have the form"
             " <think>reasoning</think><answer>answer</answer> or <think>rea")
            for solution in (
                "<think>y", "y</think>", "<think>y</think> so 4", "y <answer>4",
                "<answer>4</answer>", "<think>y</think><answer>4</answer>z",
                "<think></think><answer>4</answer>",
            )
        ),
        (published.from_own,
         {"question": "x", "answer": "4",
          "solution": "<think>y</think><answer>5</answer>"},
         "solution: answers '5' between <answer> and </answer>, but the row's"
         " answer is '4'; they must be the same"),
    ],
)  # fmt: skip
def test_other_rows_are_refused(convert, row, message):
  with pytest.raises(ValueError, match=message):
    convert(row)


def load(task, folder, prepared):
  return builders.load(
      task, source_dir=str(folder), prepared_dir=str(prepared)
  )


def test_prepared_from_local_files(tmp_path):
  folder = texts.write_gsm8k(tmp_path / "files")
  rows = load("gsm8k", folder, tmp_path / "prepared")
  assert {name: len(split) for name, split in rows.items()} == {
      "train": 32, "test": 8,
  }  # fmt: skip
  # In their order, and as converted.
  assert rows["train"] == [
      published.from_gsm8k(texts.row(i)) for i in range(32)
  ]
  assert rows["train"][0].answer == "3000"
  # Its own folder does as well; nothing is prepared again.
  def written():
    files = sorted((tmp_path / "prepared").rglob("*.array_record*"))
    return [(path, path.stat().st_mtime_ns) for path in files]

  before = written()
  assert len(before) == 2
  assert load("gsm8k", folder / "gsm8k", tmp_path / "prepared") == rows
  assert written() == before


def test_conversion_has_a_version():
  """What was prepared once is read again: other rows need another version.

  If this fails because a conversion was changed on purpose, raise `version` of
  the data sets that use it and put the new sum here.
  """
  versions = {k: data.version for k, data in published.DATA_SETS.items()}
  digest = hashlib.sha256(repr(versions).encode())
  for convert, row, _ in ROWS:
    digest.update(repr(convert(row)).encode())
  assert digest.hexdigest()[:16] == "30faa17e4479dfb4"


def test_every_name_of_the_configuration_is_a_data_set():
  assert tuple(published.DATA_SETS) == data_config.READ
  for name, data in published.DATA_SETS.items():
    assert data.name == name
    assert data.test in (*data.files, "")


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("gsm8k", "fetched_ccee20cd12ac4a26"),
        ("math500", "fetched_2a5a7d0a68a8c6a6"),
        ("dapo_math", "fetched_bbb09d215fbcf824"),
        ("commonsense_qa", "fetched_4b3f6004e8b69d80"),
        ("aime24", "fetched_0efe5bdde9791fb7"),
        ("aime25", "fetched_c8b097081bca1e3a"),
    ],
)
def test_prepared_folders_keep_their_names(task, folder, tmp_path):
  """What was fetched and prepared once is found again."""
  builder = builders.Builder(published.DATA_SETS[task], None, tmp_path)
  assert builder.data_path == tmp_path / task / folder / "1.0.0"
  assert set(builder.info.features) == {"question", "answer", "solution"}


def test_other_files_are_another_data_set(tmp_path):
  folder = texts.write_gsm8k(tmp_path / "files")
  load("gsm8k", folder, tmp_path / "prepared")
  texts.write_gsm8k(tmp_path / "files", train=16)
  rows = load("gsm8k", folder, tmp_path / "prepared")
  assert len(rows["train"]) == 16


def test_columns_of_own_rows(tmp_path):
  """They come back from jsonl and from parquet; other sets keep none."""
  rows = [
      {"question": "a?", "answer": 1, "level": 2, "tests": [["x", 0.5], []]},
      {"question": "b?", "answer": 2, "level": None, "tests": []},
  ]
  expected = [
      Example("a?", "1", row={"level": 2, "tests": [["x", 0.5], []]}),
      Example("b?", "2", row={"level": None, "tests": []}),
  ]
  texts.write_jsonl(tmp_path / "train.jsonl", rows)
  flat = [row | {"tests": [["x"]], "share": 0.1} for row in rows]
  table = pyarrow.Table.from_pylist(flat)
  at = table.schema.get_field_index("share")
  table = table.set_column(at, "share", table["share"].cast(pyarrow.float32()))
  parquet.write_table(table, tmp_path / "test.parquet")
  for _ in range(2):  # the second time what is prepared is read
    found = load("own", tmp_path, tmp_path / "prepared")
    assert found["train"] == expected
    assert [x.row for x in found["test"]] == [
        {"level": level, "tests": [["x"]], "share": 0.1} for level in (2, None)
    ]
  assert expected[0].columns == {
      "question": "a?", "answer": "1", "solution": "",
      "level": 2, "tests": [["x", 0.5], []],
  }  # fmt: skip


def test_the_fingerprint_tells_columns_apart():
  """Without columns it is that of older versions, so that runs resume."""
  plain = [Example("a?", "1", "So."), Example("b?", "2")]
  older = hashlib.sha256(b"a?\0001\0So.\0b?\0002\0\0").hexdigest()
  assert splits.fingerprint({"train": plain}) == {"train": older}
  prints = [
      splits.fingerprint({"x": [dataclasses.replace(plain[0], row=row)]})["x"]
      for row in ({}, {"a": 1}, {"a": "1"}, {"a": 1, "b": 2}, {"b": 2, "a": 1})
  ]
  assert len(set(prints)) == 4
  assert prints[3] == prints[4]


def test_parquet_in_several_parts_and_repeated_rows(tmp_path):
  rows = [dapo(f"What is {i % 4} + 1?", str(i % 4 + 1)) for i in range(10)]
  for part in range(2):
    table = pyarrow.Table.from_pylist(rows[5 * part : 5 * part + 5])
    path = tmp_path / "data" / f"train-0000{part}-of-00002.parquet"
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(table, path)
  found = load("dapo_math", tmp_path, tmp_path / "prepared")
  assert found == {
      "train": [Example(f"What is {i} + 1?", str(i + 1)) for i in range(4)]
  }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have a train file of gsm8k"),
        ('{"question": "a", "answer": "#### 1"}\n\n{"question": 1}\n',
         r"train\.jsonl: row 2 is not a row of gsm8k: answer = None"),
        ("[1]\n", r"train\.jsonl: line 1 is not a JSON object"),
        ("so\n", r"train\.jsonl: line 1 is not JSON"),
        ("PAR1 and no more", r"train\.jsonl: is not a parquet file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path, content, message):
  if content:
    (tmp_path / "train.jsonl").write_text(content)
    texts.write_jsonl(tmp_path / "test.jsonl", [texts.row(1)])
  with pytest.raises(ConfigError, match=message):
    load("gsm8k", tmp_path, tmp_path / "prepared")
  with pytest.raises(ConfigError, match="other': must be a folder"):
    load("gsm8k", tmp_path / "other", tmp_path / "prepared")


@pytest.fixture
def server(tmp_path):
  """A local web server of a folder."""
  folder = tmp_path / "served"
  folder.mkdir()
  handler = functools.partial(
      http.server.SimpleHTTPRequestHandler, directory=str(folder)
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{web.server_port}"
    web.shutdown()


def fetched_from(monkeypatch, address, files):
  """GSM8K, with other files from elsewhere to fetch."""
  downloads = tuple(
      Download(
          split,
          f"{address}/{path.name}",
          path.stat().st_size,
          hashlib.sha256(path.read_bytes()).hexdigest(),
      )
      for split, path in files.items()
  )
  data = dataclasses.replace(
      published.DATA_SETS["gsm8k"], downloads=downloads
  )
  monkeypatch.setitem(published.DATA_SETS, "gsm8k", data)


def test_fetched_by_checksum(server, monkeypatch, tmp_path):
  folder, address = server
  texts.write_gsm8k(folder.parent)
  local = {
      name: folder / f"{name}.jsonl" for name in ("train", "test")
  }
  for name, path in local.items():
    (folder.parent / "gsm8k" / f"{name}.jsonl").rename(path)
  fetched_from(monkeypatch, address, local)
  prepared = str(tmp_path / "prepared")
  rows = builders.load("gsm8k", prepared_dir=prepared)
  assert len(rows["train"]) == 32
  # Once is enough.
  for path in local.values():
    path.unlink()
  assert builders.load("gsm8k", prepared_dir=prepared) == rows


def test_fetched_with_another_content(server, monkeypatch, tmp_path):
  folder, address = server
  path = folder / "train.jsonl"
  texts.write_jsonl(path, map(texts.row, range(4)))
  fetched_from(monkeypatch, address, {"train": path})
  path.write_text(path.read_text().replace("Ada", "Eve"))
  with pytest.raises(ConfigError, match=r"gsm8k': could not.*wrong checksum"):
    builders.load("gsm8k", prepared_dir=str(tmp_path / "prepared"))


def no_network(monkeypatch):
  def fail(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")

  monkeypatch.setattr(socket, "getaddrinfo", fail)
  for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("task", data_config.PUBLISHED)
def test_without_a_network_and_files(task, monkeypatch, tmp_path):
  no_network(monkeypatch)
  with pytest.raises(ConfigError) as error:
    builders.load(task, prepared_dir=str(tmp_path))
  message = str(error.value)
  assert "\n" not in message
  assert message.startswith(f"data {task!r}: is not prepared in {tmp_path}")
  assert "--config.data.source_dir=FOLDER" in message


@pytest.mark.parametrize("task", data_config.PUBLISHED)
def test_every_published_file_is_pinned(task):
  data = published.DATA_SETS[task]
  assert {file.split for file in data.downloads} == set(data.files)
  for file in data.downloads:
    assert file.url.startswith("https://")
    assert "/main/" not in file.url
    assert "/master/" not in file.url
    assert len(bytes.fromhex(file.sha256)) == 32
    assert file.size > 1000


@pytest.mark.skipif(
    not (tiny.SHARED / "gsm8k").is_dir(),
    reason="GSM8K is not part of the repository",
)
def test_the_pinned_sums_are_those_of_the_real_files():
  for file in published.DATA_SETS["gsm8k"].downloads:
    content = (tiny.SHARED / "gsm8k" / f"{file.split}.jsonl").read_bytes()
    assert len(content) == file.size
    assert hashlib.sha256(content).hexdigest() == file.sha256


@pytest.mark.skipif(
    not (tiny.SHARED / "math500").is_dir(),
    reason="GSM8K, MATH-500 and AIME are not part of the repository",
)
def test_the_real_data_sets(tmp_path):
  sizes, answers = {}, []
  for task in ("gsm8k", "math500", "aime24"):
    for name, rows in load(task, tiny.SHARED, tmp_path).items():
      sizes[task, name] = len(rows)
      answers += [(task, row.answer) for row in rows]
      assert all("<<" not in row.solution for row in rows) or task != "gsm8k"
  assert sizes == {
      ("gsm8k", "train"): 7473, ("gsm8k", "test"): 1319,
      ("math500", "test"): 500, ("aime24", "test"): 30,
  }  # fmt: skip
  for task, answer in answers:
    assert task == "math500" or str(int(answer)) == answer


_PREPARE = """
import sys
from iapo_jax.data import builders
rows = builders.load("gsm8k", source_dir=sys.argv[1], prepared_dir=sys.argv[2])
print(len(rows["train"]))
"""


def test_several_processes_prepare_at_once(tmp_path):
  folder = texts.write_gsm8k(tmp_path / "files")
  command = [
      sys.executable, "-c", _PREPARE, str(folder), str(tmp_path / "prepared"),
  ]  # fmt: skip
  started = [
      subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
      for _ in range(3)
  ]
  said = [process.communicate(timeout=120)[0] for process in started]
  assert [process.returncode for process in started] == [0, 0, 0]
  assert [text.splitlines()[-1] for text in said] == ["32"] * 3
  assert sum("gsm8k: prepares" in text for text in said) == 1


def test_a_file_that_became_a_folder(tmp_path):
  """The error is about them, not about what was prepared before."""
  folder = texts.write_gsm8k(tmp_path / "files")
  load("gsm8k", folder, tmp_path / "prepared")
  file = next(x for x in folder.rglob("*train*") if x.is_file())
  file.unlink()
  file.mkdir()
  with pytest.raises(ConfigError) as error:
    load("gsm8k", folder, tmp_path / "prepared")
  assert str(error.value) == f"{str(file)!r}: cannot be read (Is a directory)"


@pytest.mark.parametrize("harm", ["cut", "delete", "info"])
def test_what_was_prepared_is_damaged(tmp_path, harm):
  folder = texts.write_gsm8k(tmp_path / "files")
  prepared = tmp_path / "prepared"
  load("gsm8k", folder, prepared)
  (data,) = prepared.rglob("gsm8k-train.array_record*")
  if harm == "cut":
    data.write_bytes(data.read_bytes()[:100])
  elif harm == "delete":
    data.unlink()
  else:
    (data.parent / "dataset_info.json").write_text("{")
  with pytest.raises(ConfigError) as error:
    load("gsm8k", folder, prepared)
  damaged = prepared / "gsm8k" if harm == "info" else data.parent
  assert f"prepared in {damaged} is damaged; delete" in str(error.value)


def test_other_numbers_of_rows_are_told(tmp_path, capsys):
  folder = texts.write_gsm8k(tmp_path / "files")
  load("gsm8k", folder, tmp_path / "prepared")
  said = capsys.readouterr().out
  warning = "data gsm8k: train has 32 rows, the published one has 7473"
  assert f"warning: {warning}" in said


def test_a_part_is_missing(tmp_path):
  table = pyarrow.Table.from_pylist([dapo("What?", "1")])
  parquet.write_table(table, tmp_path / "train-00000-of-00002.parquet")
  rule = "must have all 2 parts beside it, but the folder has 1"
  with pytest.raises(ConfigError, match=rule):
    load("dapo_math", tmp_path, tmp_path / "prepared")


def test_repeated_problems_are_counted(tmp_path, capsys):
  rows = [dapo(q, "1") for q in ("What is it?", "What  is IT?", "Why?")]
  texts.write_jsonl(tmp_path / "train.jsonl", rows)
  found = load("dapo_math", tmp_path, tmp_path / "prepared")
  assert [row.question for row in found["train"]] == ["What is it?", "Why?"]
  assert "leaves out 1 rows that repeat a problem" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(tmp_path):
  folder = texts.write_gsm8k(tmp_path / "files")
  (tmp_path / "file").write_text("")
  rule = r"prepared_dir = .*must be a writable folder"
  with pytest.raises(ConfigError, match=rule):
    load("gsm8k", folder, tmp_path / "file")
