"""Completions are untrusted: nothing hangs, ends or grows for what is in them.

docs/reliability.md says how to run this with 100,000 of them.
"""

import csv
import random
import resource

import hypothesis
import pytest
from hostile import PIECES, golds, pieces, whole
from hypothesis import strategies as st
from test_report import Reader

from iapo_jax.config import formats
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.formats import FormatConfig
from iapo_jax.core import files
from iapo_jax.rewards import grade, spelling, text
from iapo_jax.run import logs
from iapo_jax.run.logs import RunLog
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page

TAGS = FormatConfig()

BATCH = 500
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8)).map("".join)
# Without a deadline: the machine may be busy.
EXAMPLES = hypothesis.settings(
    max_examples=300, deadline=None, derandomize=True, database=None
)


@EXAMPLES
@hypothesis.given(TEXTS)
def test_what_is_found_is_in_the_text(completion):
  answer = text.extract_answer(completion, TAGS)
  if answer is not None:
    assert TAGS.answer_open in completion
    assert answer in completion
    assert answer == answer.strip()
    assert TAGS.answer_close not in answer
  boxed = text.last_boxed(completion)
  assert boxed is None or "{" + boxed + "}" in completion
  for lenient in (False, True):
    found = text.find_answer(completion, TAGS, lenient=lenient)
    assert found is None or (found.text in completion and found.text.strip())
    assert not (not lenient and found and answer is None)


@EXAMPLES
@hypothesis.given(TEXTS, st.sampled_from(formats.PRESETS))
def test_every_format_reads_every_text(completion, preset):
  form = formats.of(preset)
  strict, lenient = (
      text.find_answer(completion, form, lenient=x) for x in (False, True)
  )
  if strict is not None:
    assert strict == lenient
    assert strict.asked
  if text.is_well_formed(completion, form):
    assert strict is not None
  # A token is a character here, so R is where the reasoning ends.
  end = text.reasoning_length(
      range(len(completion)), lambda ids: "".join(completion[i] for i in ids),
      form,
  )  # fmt: skip
  rest = completion[end:]
  if form.thinks:
    assert form.closer not in completion[:end]
    assert not rest or rest.startswith(form.closer)
  elif strict is not None:
    assert rest.startswith("\\")
    assert strict.text in rest


@EXAMPLES
@hypothesis.given(TEXTS, TEXTS, st.integers(0, 9))
def test_well_formed_is_what_was_asked_for(reasoning, answer, blanks):
  completion = (
      f"{reasoning}</think>{' ' * blanks}<answer>{answer}</answer>"
      + "\n" * blanks
  )
  parts = reasoning, answer
  tags = any(tag in part for part in parts for tag in (
      "<think>", "</think>", "<answer>", "</answer>",
  ))  # fmt: skip
  # A tag may also come about where two pieces meet.
  if tags or not all(part.strip() for part in parts):
    assert not text.is_well_formed(completion, TAGS)
  elif text.is_well_formed(completion, TAGS):
    assert text.extract_answer(completion, TAGS) == answer.strip()
  else:
    assert "<" in reasoning + answer


@EXAMPLES
@hypothesis.given(TEXTS)
def test_the_same_answer_is_right(answer):
  """Whatever it is: what is spelled alike is equal, but for blanks."""
  completion = f"so</think><answer>{answer}</answer>"
  found = text.find_answer(completion, TAGS, lenient=False)
  # Long ones are wrong unread; of marks that nobody sees nothing is left.
  if (
      found is None
      or len(found.text) > spelling.LONGEST
      or not spelling.normalise(found.text)
  ):
    return
  (result,) = grade([completion], [found.text], lenient=False)
  assert result.correct
  assert result.answer == found.text


def record(step, texts, graded, completion):
  """As `samples.records` makes them."""
  count = len(texts)
  return {
      "step": step, "prompt": whole(completion[:200]), "gold": "4",
      "tokens": texts, "reasoning_tokens": count,
      "correct": graded.correct, "reward": 1.0,
      "well_formed": text.is_well_formed(completion, TAGS),
      "entropies": [0.5] * count, "answer_entropies": [0.5] * (count + 1),
      "information": [0.1] * count, "group_advantage": 0.0,
      "advantages": [0.0] * count,
  }  # fmt: skip


def write_run(folder):
  folder.mkdir()
  flat = config_lib.flatten(config_lib.parse(config_lib.default()))
  files.write_json(folder / "config.json", flat)
  return folder


@pytest.mark.full
def test_many_completions(tmp_path, request):
  """Through the grader, the format check, the log and the report."""
  count = request.config.getoption("--completions")
  rng, late, peaks = random.Random(0), 0, []
  for batch in range(0, count, BATCH):
    texts = [pieces(rng) for _ in range(min(BATCH, count - batch))]
    completions = ["".join(x) for x in texts]
    graded = grade(
        completions,
        [rng.choice(golds()) for _ in texts],
        lenient=rng.random() < 0.5,
    )
    late += sum(result.timed_out for result in graded)
    records = [
        record(batch, x, y, z)
        for x, y, z in zip(texts, graded, completions, strict=True)
    ]
    run = write_run(tmp_path / f"run-{batch}")
    with RunLog(run) as log:
      log.write_samples(records)
    # Every one is there, and as it was: one line each.
    assert logs.read(run, logs.SAMPLES) == records
    drawn = page.write({"run": [run]}, run / "page", title="x")
    reader = Reader()
    reader.feed(drawn.read_text(encoding="utf-8"))
    assert reader.open == []
    assert len(reader.of("script")) == 1
    assert not any("onerror" in a for _, a in reader.elements)
    for path in sorted(run.rglob("*"), reverse=True):
      path.unlink() if path.is_file() else path.rmdir()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
  print(f"{count} completions, {late} too late; peaks of KiB {peaks[::20]}")
  assert late <= count / 100
  # After the first tenth nothing accumulates.
  assert peaks[-1] < 1.1 * peaks[len(peaks) // 10] + 2**16


def test_no_cell_of_a_table_is_a_formula(tmp_path):
  names = ["=cmd|' /C calc'!A0", "+1", "-1", "@x", "\t=1", "a=b", "\x1b[31m"]
  records = [
      {
          "run": name, "checkpoint": "rl/1", "task": "x", "split": "test",
          "skipped": 0, "batch_size": 1, "temperature": 1.0,
          "top_p": 1.0, "top_k": 0,
          "seeds": [{"seed": 0, "accuracy": -0.5}], "mean": {"accuracy": -0.5},
      }
      for name in names
  ]  # fmt: skip
  comparison.write(records, tmp_path / "table")
  with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  runs = [row["run"] for row in rows[::2]]
  assert runs == [*("'" + name for name in names[:5]), *names[5:]]
  assert {row["accuracy"] for row in rows} == {"-0.5"}  # numbers stay numbers
