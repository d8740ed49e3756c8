"""Scores reasoning that exists already: what each token tells of the answer.

  python experiments/score.py --model=FOLDER --input=IN.jsonl \
      --output=OUT.jsonl --html=OUT.html

A line of the input is a JSON object with `prompt` and `completion` as text, or
`prompt_ids`, `completion_ids` and perhaps `postfix_ids` (the elicitation) as
token ids. A `prompt` that is a list of messages, or with --chat any, goes
through the model's chat template. Of text the reasoning ends before
`</think>`; of ids every completion token is reasoning.

A line of the output is that of the input and, in nats at temperature 1:
`logprobs` [t] and `entropies` [t] of the completion's tokens,
`answer_entropies` [t + 1], how uncertain the answer would be if it had to be
given after 0, 1, ... t tokens (null after the reasoning), and `mi` [t], by how
much each token lowered that. Lines are written as they are done; the same
command goes on after them.
"""

import dataclasses
import datetime
import pathlib

import tqdm
from absl import flags

from iapo_jax.cli import command
from iapo_jax.config.model import ModelConfig
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import task
from iapo_jax.hf import folder, tokenizer, weights
from iapo_jax.tools import score_lines, scoring
from iapo_jax.tools.report import scores as scores_page

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name.")
_INPUT = flags.DEFINE_string("input", None, "Lines of JSON to score.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write; must be new.")
_HTML = flags.DEFINE_string("html", None, "Page to draw; must be new.")
_HTML_LINES = flags.DEFINE_integer(
    "html_lines", 100, "Of the input, the first so many.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ("float32", "bfloat16"), "Of weights and matmuls."
)
_CHAT = flags.DEFINE_bool(
    "chat", False, "Put every prompt as a user's message."
)
_DATE = flags.DEFINE_string(
    "chat_date", "2026-01-01", "That chat templates print as today's."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Folder or hub name, if it is not the model's."
)
_ELICITATION = flags.DEFINE_string(
    "elicitation", "</think>\n<answer>", "Ends the reasoning of text."
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Lines a call.", lower_bound=1)
flags.mark_flags_as_required(("model", "input", "output"))


def main(arguments: list[str]) -> None:
  """Reads, scores, writes."""
  if len(arguments) > 1:
    raise ConfigError(f"{arguments[1]!r}: give everything by --flags")
  output, html = _places()
  place = folder.find(_MODEL.value)
  cfg = dataclasses.replace(folder.read_model(place), dtype=_DTYPE.value)
  rules = read_rules(place, cfg)
  lines, items = score_lines.read(pathlib.Path(_INPUT.value), rules)
  flags_used = (_MODEL, _DTYPE, _CHAT, _DATE, _TOKENIZER, _ELICITATION)
  settings = {flag.name: flag.value for flag in flags_used}
  done = score_lines.Partial(output, lines, settings)
  if done.count:
    print(f"resumes  after {done.count} of {len(lines)} lines")
  params = weights.load(place, cfg, dtype=_DTYPE.value)
  progress = tqdm.tqdm(
      total=len(lines), initial=done.count, unit="lines", disable=None
  )
  window = 16 * _BATCH.value  # in which lines of like lengths go together
  for start in range(done.count, len(lines), window):
    some = items[start : start + window]
    found = dict(
        scoring.score(params, some, cfg=cfg, batch_size=_BATCH.value)
    )
    done.append(
        score_lines.scored(
            lines[start + i], item, found[i], rules.tokenizer
        )
        for i, item in enumerate(some)
    )
    progress.update(len(some))
  progress.close()
  page = None
  if html:
    # Before the scores are where the command would not go on with them.
    title = f"Information in {pathlib.Path(_INPUT.value).name}"
    shown = done.first(_HTML_LINES.value)
    page = scores_page.draw(shown, title=title, total=len(lines))
  done.finish()
  print(f"scored {len(lines)} lines of {_INPUT.value} to {output}")
  if html:
    # A lone surrogate in a line has no UTF-8 form: it is shown as its escape.
    files.write_text(html, page, errors="backslashreplace")
    print(f"page     {html}")


def _places() -> tuple[pathlib.Path, pathlib.Path | None]:
  """Where scores and page go: two files that are not there yet."""
  output = pathlib.Path(_OUTPUT.value)
  html = pathlib.Path(_HTML.value) if _HTML.value else None
  if html and html.resolve() == output.resolve():
    raise ConfigError(f"--html = {str(html)!r}: must not be --output")
  for path in filter(None, (output, html)):
    if path.exists():
      raise ConfigError(f"{str(path)!r}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
  return output, html


def read_rules(place: pathlib.Path, cfg: ModelConfig) -> score_lines.Rules:
  """What lines are read by, for the model in a folder."""
  tokens = folder.read_tokens(place)
  tok, ends, elicitation = None, tokens.eos_ids, ()
  if _TOKENIZER.value:
    tok = tokenizer.load(folder.find(_TOKENIZER.value))
  elif (place / "tokenizer.json").exists():
    tok = tokenizer.load(place)
  if tok is not None:
    ends = task.stop_ids(tok, tokens)
    elicitation = task.elicitation_ids(
        tok, _ELICITATION.value, "--elicitation"
    )
    if max(elicitation) >= cfg.vocab_size:
      raise ConfigError(
          f"--elicitation = {_ELICITATION.value!r}: has token"
          f" {max(elicitation)}; the model has {cfg.vocab_size}"
      )
  try:
    datetime.date.fromisoformat(_DATE.value)
  except ValueError as error:
    raise ConfigError(
        f"--chat_date = {_DATE.value!r}: must be a date, YYYY-MM-DD"
    ) from error
  return score_lines.Rules(
      vocab_size=cfg.vocab_size,
      max_positions=cfg.max_positions,
      tokenizer=tok,
      eos_ids=ends,
      elicitation=elicitation,
      chat=_CHAT.value,
      date=_DATE.value,
  )


if __name__ == "__main__":
  command.run(main)
