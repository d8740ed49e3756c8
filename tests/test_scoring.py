"""Scoring completions that exist: batches, lines, the command."""

import json
import pathlib
import shutil
import subprocess
import sys
import types

import checkpoints
import numpy as np
import pytest
import runs
import safetensors.numpy
import tiny

from iapo_jax.config.formats import FormatConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import unknown
from iapo_jax.hf import folder, tokenizer, weights
from iapo_jax.tools import score_lines, scoring
from iapo_jax.tools.scoring import Item

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
QWEN = ROOT.parent / "shared" / "data" / "qwen2_tokenizer"


def rules(tok=None, **changes):
  settings = {
      "vocab_size": 61, "max_positions": 128, "tokenizer": tok,
      "eos_ids": (1,), "elicitation": (4, 5), "chat": False,
      "date": "2026-01-01", "form": FormatConfig(),
  }  # fmt: skip
  return score_lines.Rules(**settings | changes)


@pytest.fixture(scope="module")
def words():
  return tiny.load_task().tokenizer


def items(count, seed=0):
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(count):
    prompt, completion = (
        tuple(rng.integers(3, 61, n).tolist())
        for n in (rng.integers(1, 24), rng.integers(0, 24))
    )
    postfix = (17, 4, 9)[: rng.integers(1, 4)]
    reasoning = int(rng.integers(0, len(completion) + 1))
    found.append(Item(prompt, completion, postfix, reasoning))
  return found


def test_neither_batch_nor_chunk_nor_neighbours_matter():
  cfg = folder.read_model(GOLDEN / "gemma3")
  params = weights.load(GOLDEN / "gemma3", cfg)
  todo = items(9)
  together = dict(
      scoring.score(params, todo, cfg=cfg, batch_size=4, head_chunk=3)
  )
  assert sorted(together) == list(range(9))
  for i, item in enumerate(todo):
    ((_, alone),) = scoring.score(params, [item], cfg=cfg, batch_size=1)
    found = together[i]
    assert len(found.logprobs) == len(item.completion)
    assert len(found.answer_entropies) == item.reasoning + 1
    for name in ("logprobs", "entropies", "answer_entropies", "information"):
      np.testing.assert_allclose(
          getattr(found, name), getattr(alone, name), atol=1e-5
      )
    # Telescoping: the reasoning's information is H_0 − H_R.
    total = found.answer_entropies[0] - found.answer_entropies[-1]
    np.testing.assert_allclose(found.information.sum(), total, atol=1e-5)
    np.testing.assert_array_equal(found.information[item.reasoning :], 0.0)


def test_nothing_to_score():
  assert list(scoring.score({}, [], cfg=None)) == []


def test_padded_lengths():
  lengths = [0, 1, 16, 17, 20, 21, 33, 64, 65, 100, 1025]
  assert [scoring._padded(n) for n in lengths] == [
      16, 16, 16, 20, 20, 24, 40, 64, 80, 112, 1280
  ]  # fmt: skip
  for n in range(1, 5000):
    assert n <= scoring._padded(n) <= max(16, 1.25 * n + 4)


def read(tmp_path, *rows, **changes):
  path = tmp_path / "in.jsonl"
  path.write_text(
      "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
  )
  return score_lines.read(path, rules(**changes))


def test_lines_of_ids_need_no_tokenizer(tmp_path):
  line = {"prompt_ids": [5, 6], "completion_ids": [7, 1], "postfix_ids": [9]}
  lines, found = read(tmp_path, line, "", line | {"name": "é"})
  assert found[0] == Item((5, 6), (7, 1), (9,), 2)  # an EOS is reasoning, too
  assert lines[1]["name"] == "é"


def test_lines_of_text(tmp_path, words):
  full = "b 5 + 1 = 6 </think> <answer> 6 </answer>"
  lines, found = read(
      tmp_path,
      {"prompt": "5 b + 1 =", "completion": full + " <eos>"},
      {"prompt": "5 b + 1 =", "completion": "b 5 <eos>"},
      {"prompt": "5 b + 1 =", "completion": "b 5"},
      {"prompt": "5 b + 1 =", "completion": ""},
      {"prompt_ids": [5], "completion_ids": [7]},
      tok=words,
  )
  assert [item.reasoning for item in found] == [6, 2, 2, 0, 1]
  assert [len(item.completion) for item in found] == [11, 3, 2, 0, 1]
  assert all(item.postfix == (4, 5) for item in found)
  assert words.decode((4, 5)) == "</think> <answer>"
  assert words.decode(found[0].prompt) == "5 b + 1 ="
  assert len(lines) == 5


def test_a_reasoning_is_opened_once(tmp_path, words):
  """By the completion if it begins with <think>, else by the template."""
  tok = tokenizer.word_tokenizer(
      [*words.convert_ids_to_tokens(range(len(words))), "user"],
      pad="<pad>", eos="<eos>", unknown="<unk>",
  )  # fmt: skip
  tok.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}"
  tok.chat_template += "{% endfor %} <think> "
  turn = [{"role": "user", "content": "5 + 1"}]
  _, found = read(
      tmp_path,
      {"prompt": turn, "completion": "5 + 1 = 6 </think>"},
      {"prompt": turn, "completion": "<think> 5 + 1 = 6 </think>"},
      {"prompt": "5 + 1", "completion": "<think> 5 </think>"},
      {"prompt": "5 + 1 <think>", "completion": "5 </think>"},
      tok=tok,
  )
  assert [tok.decode(item.prompt) for item in found] == [
      "user 5 + 1 <think>", "user 5 + 1", "5 + 1", "5 + 1 <think>",
  ]  # fmt: skip
  assert [item.reasoning for item in found] == [5, 6, 2, 1]
  # Prompt and completion are one sequence, wherever the line between them is.
  assert found[0].prompt + found[0].completion == (
      found[1].prompt + found[1].completion
  )
  rule = r"in.jsonl:1: completion = '<think> 5': begins with <think>, as the"
  with pytest.raises(ConfigError, match=rule):
    read(
        tmp_path, {"prompt": "5 <think>\n", "completion": "<think> 5"}, tok=tok
    )


IDS = {"prompt_ids": [5], "completion_ids": [7], "postfix_ids": [9]}
BROKEN = {
    "no json": ("{", "in.jsonl:1: is not JSON"),
    "a list": ("[1]", "in.jsonl:1: must be a JSON object"),
    "nan": ('{"prompt_ids": [NaN]}', "NaN is not a number in JSON"),
    "nothing": ({"id": 1}, "must have either prompt and completion, or"),
    "both": (IDS | {"prompt": "x"}, "must have either"),
    "half": ({"prompt_ids": [5]}, "has no completion_ids"),
    "half a text": ({"prompt": "x"}, "has no completion"),
    "no list": (IDS | {"prompt_ids": "5"}, "must be a list of whole numbers"),
    "truth": (IDS | {"prompt_ids": [True]}, "must be a list of whole numbers"),
    "too large": (IDS | {"completion_ids": [61]}, "completion_ids = 61:"),
    "negative": (IDS | {"completion_ids": [-1]}, "completion_ids = -1:"),
    "no prompt": (IDS | {"prompt_ids": []}, "prompt_ids: must have at least"),
    "no postfix": (IDS | {"postfix_ids": []}, "postfix_ids: must have"),
    "long": (IDS | {"completion_ids": [7] * 127}, "have 129 tokens; the model"),
    "no tokenizer": (
        {"prompt": "5", "completion": "b"}, "is text, but the model's folder",
    ),
    "a score": (IDS | {"mi": [1.0]}, "mi: is a field of the output; rename"),
    "infinity": ('{"prompt_ids": [1e999]}', "is not JSON"),
    "no elicitation": (
        {"prompt_ids": [5], "completion_ids": [7]}, "has no postfix_ids, but",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_lines_that_break_a_rule(tmp_path, case):
  row, message = BROKEN[case]
  with pytest.raises(ConfigError, match=message) as error:
    read(tmp_path, row)
  assert "\n" not in str(error.value)


BROKEN_TEXT = {
    "number": ({"prompt": 5, "completion": "b"}, "prompt = 5: must be"),
    "completion": (
        {"prompt": "5", "completion": None}, "completion = None: must be text",
    ),
    "messages": ({"prompt": ["5"], "completion": "b"}, "a list of messages"),
    "no template": (
        {"prompt": [{"role": "user", "content": "5"}], "completion": "b"},
        "has no chat template",
    ),
    "half a pair": (
        {"prompt": "5", "completion": "b\ud800"},
        "in.jsonl:1: completion: must not contain half a surr",
    ),
    "empty": ({"prompt": "", "completion": "b"}, "must have at least"),
    "postfix": (
        {"prompt": "5", "completion": "b", "postfix_ids": [3]},
        "must come with prompt_ids",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_TEXT)
def test_texts_that_break_a_rule(tmp_path, words, case):
  row, message = BROKEN_TEXT[case]
  with pytest.raises(ConfigError, match=message):
    read(tmp_path, row, tok=words)


def test_files_that_break_a_rule(tmp_path, words):
  with pytest.raises(ConfigError, match="has no lines"):
    read(tmp_path, "", "  ")
  with pytest.raises(ConfigError, match="No such file"):
    score_lines.read(tmp_path / "absent", rules())
  (tmp_path / "bytes").write_bytes(b"\xff\xfe")
  with pytest.raises(ConfigError, match="is not UTF-8"):
    score_lines.read(tmp_path / "bytes", rules())
  row = {"prompt": "5", "completion": "b 9"}
  with pytest.raises(ConfigError, match="prompt: has token 26; must be below"):
    read(tmp_path, row, tok=words, vocab_size=20)


def test_what_was_left_is_gone_on_with(tmp_path):
  output = tmp_path / "out.jsonl"
  lines = [{"id": i, "é": "\ud800"} for i in range(3)]
  first = score_lines.Partial(output, lines, {"model": "m"})

  def failing():
    yield lines[0] | {"mi": [0.5]}
    raise FloatingPointError

  with pytest.raises(FloatingPointError):
    first.append(failing())
  with pytest.raises(ConfigError, match="another command writes it; wait"):
    score_lines.Partial(output, lines, {"model": "m"})
  del first
  partial = tmp_path / "out.jsonl.partial"
  with partial.open("a") as file:
    file.write('{"id": 1, "cut o')
  for others, settings in (
      ([{"id": 9}, *lines[1:]], {"model": "m"}),
      ([], {"model": "m"}),
      (lines, {"model": "other"}),
  ):
    with pytest.raises(ConfigError, match="was left by another input or other"):
      score_lines.Partial(output, others, settings)
  again = score_lines.Partial(output, lines, {"model": "m"})
  assert again.count == 1
  again.append(line | {"mi": [1.5]} for line in lines[1:])
  assert [line["mi"] for line in again.first(2)] == [[0.5], [1.5]]
  again.finish()
  assert not partial.exists()
  written = [json.loads(x) for x in output.read_text().splitlines()]
  assert [line["mi"] for line in written] == [[0.5], [1.5], [1.5]]
  assert [line.items() >= x.items() for line, x in zip(
      written, lines, strict=True
  )] == [True] * 3


@pytest.mark.parametrize(
    ("prompt", "completion", "told"),
    [
        ("5 b + 1 =", "b 5", None),
        ("5 b", "b who", None),  # half of it is known
        ("5 b + 1 = what", "b 5 who are you", ("1 of 2", "3 of 5")),
        ("hello there", "", ("1 of 2", "2 of 2")),
        ("hello there", "you", ("2 of 2", "3 of 3")),
    ],
)
def test_unknown_tokens_are_told(
    tmp_path, words, capsys, prompt, completion, told
):
  line = {"prompt": prompt, "completion": completion}
  _, found = read(tmp_path, line, tok=words)
  score_lines.tell_unknown(found, rules(words))
  expected = told and (
      f"warning: of {told[0]} prompts and completions the tokenizer does not"
      f" know most tokens ({told[1]} are '<unk>'); their scores say little;"
      " name the model's tokenizer with --tokenizer\n"
  )
  assert capsys.readouterr().out == (expected or "")


def test_without_an_unknown_token_nothing_is_unknown(capsys):
  tok = types.SimpleNamespace(unk_token_id=None)
  unknown.warn(tok, [[1, 2]], "texts", "x")
  score_lines.tell_unknown(items(2), rules(None))
  assert capsys.readouterr().out == ""


def test_scores_that_are_not_finite_stop():
  bad = scoring.Scores(*[np.array([np.nan])] * 4)
  with pytest.raises(FloatingPointError, match="not finite"):
    score_lines.scored({}, Item((1,), (2,), (3,), 0), bad, None)


def run_score(*arguments):
  return subprocess.run(
      [sys.executable, "experiments/score.py", *arguments],
      cwd=ROOT, env=runs.environment(), capture_output=True, text=True,
      timeout=300, check=False,
  )  # fmt: skip


@pytest.mark.full
def test_the_command_says_what_torch_said(tmp_path):
  """By ids alone: a folder without a tokenizer, the golden numbers."""
  rows = [
      {"prompt_ids": p, "completion_ids": c, "postfix_ids": [17, 4, 9], "id": i}
      for i, (p, c) in enumerate(checkpoints.sequences())
  ]
  source, output = tmp_path / "in.jsonl", tmp_path / "out" / "scores.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  flags = (
      f"--model={GOLDEN / 'mistral'}", f"--input={source}",
      f"--output={output}", f"--html={tmp_path / 'page.html'}",
      "--dtype=float32",
  )  # fmt: skip
  done = run_score(*flags)
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in output.read_text().splitlines()]
  expected = safetensors.numpy.load_file(
      GOLDEN / "mistral" / "expected.safetensors"
  )
  for i, (line, row) in enumerate(zip(found, rows, strict=True)):
    assert row.items() <= line.items()
    assert "tokens" not in line
    assert line["reasoning_tokens"] == len(row["completion_ids"])
    for name in ("logprobs", "entropies", "answer_entropies"):
      np.testing.assert_allclose(line[name], expected[f"{name}.{i}"], atol=1e-4)
    answers = expected[f"answer_entropies.{i}"]
    np.testing.assert_allclose(line["mi"], -np.diff(answers), atol=2e-4)
  page = (tmp_path / "page.html").read_text()
  assert page.count('class="example"') == 3
  assert page.count('class="token ') == 20 + 13 + 7
  same = runs.command("score", *flags[:3], f"--html={output}")
  assert "must not be --output" in same.stderr
  again = runs.command("score", *flags)
  assert again.returncode == 2
  assert again.stderr.strip().endswith("exists already; name a new file")
  assert "Traceback" not in again.stderr


def test_the_command_refuses_a_date_and_tokens_there_are_not(tmp_path, words):
  flags = ["--input=i", f"--output={tmp_path / 'out.jsonl'}"]
  done = runs.command(
      "score", f"--model={GOLDEN / 'mistral'}", *flags, "--chat_date=yesterday"
  )
  assert "--chat_date = 'yesterday': must be a date, YYYY-" in done.stderr
  place = tmp_path / "model"
  shutil.copytree(GOLDEN / "qwen2", place)
  more = [f"w{i}" for i in range(70)]
  tokenizer.word_tokenizer(
      more + words.convert_ids_to_tokens(range(len(words))),
      pad="<pad>", eos="<eos>", unknown="<unk>",
  ).save_pretrained(place)  # fmt: skip
  done = runs.command(
      "score", f"--model={place}", *flags, "--elicitation=</think>"
  )
  assert "--elicitation = '</think>': has token" in done.stderr
  assert "but the model's tokens are below 61" in done.stderr


def test_the_command_scores_text_and_escapes_it(tmp_path, words):
  place = tmp_path / "model"
  shutil.copytree(GOLDEN / "qwen2", place)
  words.save_pretrained(place)
  rows = [
      {"prompt": "5 b + 1 =", "completion": "b 5 </think> <answer> 6 </answer>",
       "note": "<script>alert(1)</script>"},
      {"prompt": "<img src=x> 5", "completion": "<script>"},
  ]  # fmt: skip
  source, output = tmp_path / "in.jsonl", tmp_path / "scores.jsonl"
  source.write_text("".join(json.dumps(row) + "\n" for row in rows))
  done = runs.command(
      "score", f"--model={place}", f"--input={source}", f"--output={output}",
      f"--html={tmp_path / 'page.html'}", "--html_lines=1",
      "--elicitation=</think> <answer>", "--dtype=bfloat16",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "warning: of 2 of 4 prompts and completions" in done.stdout
  first, second = map(json.loads, output.read_text().splitlines())
  assert first["tokens"] == [
      "b", " 5", " </think>", " <answer>", " 6", " </answer>",
  ]  # fmt: skip
  assert first["note"] == rows[0]["note"]
  assert first["reasoning_tokens"] == 2
  assert first["answer_entropies"][3:] == [None] * 4
  assert first["mi"][2:] == [0.0] * 4
  assert first["mi"][0] != 0
  assert len(second["logprobs"]) == 1
  page = (tmp_path / "page.html").read_text()
  assert "The first 1 of 2 completions" in page
  assert "<script>alert" not in page
  assert page.count("<script>") == 1


@pytest.mark.skipif(
    not QWEN.is_dir(),
    reason="the Qwen2 tokenizer is not part of the repository",
)
def test_a_real_tokenizer_and_its_chat_template(tmp_path):
  tok = tokenizer.load(QWEN)
  completion = "Half of 4 is 2.</think>\n<answer>2</answer><|im_end|>"
  lines, found = read(
      tmp_path,
      {"prompt": "Half of 4?", "completion": completion},
      {"prompt": [{"role": "user", "content": "Half of 4?"}],
       "completion": completion},
      tok=tok, vocab_size=151_936, max_positions=0, eos_ids=(151_645,),
      elicitation=(522, 26865, 397, 27, 9217, 29),
  )  # fmt: skip
  del lines
  plain, chat = found
  assert plain.postfix == (522, 26865, 397, 27, 9217, 29)
  # `.</` is one token, which straddles the end of the reasoning.
  assert tok.decode(plain.completion[: plain.reasoning]) == "Half of 4 is 2"
  assert tok.decode(chat.prompt) == (
      "<|im_start|>user\nHalf of 4?<|im_end|>\n<|im_start|>assistant\n"
  )
  assert chat.completion == plain.completion
  _, (forced,) = read(
      tmp_path,
      {"prompt": "Half of 4?", "completion": completion},
      tok=tok, vocab_size=151_936, max_positions=0, eos_ids=(151_645,),
      elicitation=(522, 26865, 397, 27, 9217, 29), chat=True,
  )  # fmt: skip
  assert forced == chat
