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
much each token lowered that.
"""

import dataclasses
import itertools
import pathlib

import tqdm
from absl import flags

from iapo_jax import cli, score_lines, scoring
from iapo_jax.data import task, tokenizer
from iapo_jax.errors import ConfigError
from iapo_jax.hf import folder, weights
from iapo_jax.model_config import ModelConfig
from iapo_jax.report import scores as scores_page

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
_ELICITATION = flags.DEFINE_string(
    "elicitation", "</think>\n<answer>", "Ends the reasoning of text."
)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Lines a call.", lower_bound=1)
_CHUNK = flags.DEFINE_integer(
    "chunk", 16, "Positions of a line probed at a time.", lower_bound=1
)
flags.mark_flags_as_required(("model", "input", "output"))


def main(arguments: list[str]) -> None:
  """Reads, scores, writes."""
  if len(arguments) > 1:
    raise ConfigError(f"{arguments[1]!r}: give everything by --flags")
  output, html = (
      pathlib.Path(name) if name else None
      for name in (_OUTPUT.value, _HTML.value)
  )
  for path in filter(None, (output, html)):
    if path.exists():
      raise ConfigError(f"{str(path)!r}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
  place = folder.find(_MODEL.value)
  cfg, rules = read_model(place)
  lines, items = score_lines.read(pathlib.Path(_INPUT.value), rules)
  params = weights.load(place, cfg, dtype=_DTYPE.value)
  found = scoring.score(
      params, items, cfg=cfg, batch_size=_BATCH.value, chunk=_CHUNK.value
  )
  for i, scores in tqdm.tqdm(found, "lines", len(items), disable=None):
    lines[i] = score_lines.scored(
        lines[i], items[i], scores, rules.tokenizer
    )
  draft = output.with_name(output.name + ".draft")
  with draft.open("w", encoding="utf-8") as file:
    file.writelines(map(score_lines.dump, lines))
  draft.rename(output)
  print(f"scored {len(lines)} lines of {_INPUT.value} to {output}")
  if html:
    shown = list(itertools.islice(lines, _HTML_LINES.value))
    title = f"Information in {pathlib.Path(_INPUT.value).name}"
    scores_page.write(html, shown, title=title, total=len(lines))
    print(f"page     {html}")


def read_model(
    place: pathlib.Path,
) -> tuple[ModelConfig, score_lines.Rules]:
  """The decoder of a folder, and what lines are read by."""
  cfg = dataclasses.replace(folder.read_model(place), dtype=_DTYPE.value)
  tokens = folder.read_tokens(place)
  tok, ends = None, tokens.eos_ids
  if (place / "tokenizer.json").exists():
    tok = tokenizer.load(place)
    ends = task.stop_ids(tok, tokens)
  rules = score_lines.Rules(
      vocab_size=cfg.vocab_size,
      max_positions=cfg.max_positions,
      tokenizer=tok,
      eos_ids=ends,
      elicitation=_ELICITATION.value,
      chat=_CHAT.value,
  )
  return cfg, rules


if __name__ == "__main__":
  cli.run(main)
