r"""Scores how much each token of existing reasoning reveals about the answer.

  iapo score --model=FOLDER --input=IN.jsonl --output=OUT.jsonl --html=OUT.html

A line of the input is a JSON object with `prompt` and `completion` as text, or
`prompt_ids`, `completion_ids` and perhaps `postfix_ids` (the elicitation) as
token ids. The model's chat template renders a `prompt` that is a list of
messages; with --chat it renders every `prompt`. In text the reasoning ends
where --format says (before `</think>`; with boxed, before the answer's
`\boxed{}`); in ids every completion token is reasoning. A BOS and a `<think>`
that the text has already are not added again.

A line of the output has the fields of the input and, in nats at temperature 1:
`logprobs` [t] and `entropies` [t] of the completion's tokens;
`answer_entropies` [t + 1], how uncertain the answer would be if it had to be
given after 0, 1, ... t tokens (null after the reasoning); and `mi` [t], by how
much each token lowers that. An interrupted command keeps the finished lines;
the same command continues after them.
"""

import argparse
import pathlib

import tqdm

from iapo_jax.cli import command
from iapo_jax.config import formats
from iapo_jax.core import files
from iapo_jax.core.errors import ConfigError
from iapo_jax.tools import loaded, score_lines
from iapo_jax.tools.report import scores as scores_page


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add(
      "--model",
      required=True,
      help="the folder of a run, a Hugging Face folder, a GGUF file or a hub"
      " name",
  )
  add("--input", required=True, help="lines of JSON to score")
  add("--output", required=True, help="file to write; must be new")
  add("--html", help="page to draw; must be new")
  add(
      "--html_lines",
      default=100,
      type=command.at_least(1),
      help="number of lines that the page shows, from the first",
  )
  add(
      "--dtype",
      default="float32",
      choices=("float32", "bfloat16"),
      help="dtype of weights and matmuls",
  )
  add("--chat", action="store_true", help="make every prompt a user's message")
  add(
      "--chat_date",
      default="2026-01-01",
      help="YYYY-MM-DD, the day that chat templates print as today",
  )
  add(
      "--tokenizer",
      help="folder, GGUF file or hub name, if it is not the model's",
  )
  add(
      "--format",
      dest="preset",
      choices=formats.PRESETS,
      help="format of the texts; by default the run's, or think_answer",
  )
  add(
      "--elicitation",
      help="text that ends the reasoning and asks for the answer; by default"
      " the run's probe.elicitation, or that of the format",
  )
  add(
      "--batch_size", default=8, type=command.at_least(1), help="lines per call"
  )


def run(given: argparse.Namespace) -> None:
  """Reads the lines, scores them and writes the results."""
  output, html = _places(given)
  # The flags that scores depend on.
  names = (
      "model", "dtype", "chat", "chat_date", "tokenizer", "preset",
      "elicitation",
  )  # fmt: skip
  settings = {name: getattr(given, name) for name in names}
  policy = loaded.load(**settings)
  lines, items = score_lines.read(pathlib.Path(given.input), policy.rules)
  score_lines.tell_unknown(items, policy.rules)
  done = score_lines.Partial(output, lines, settings)
  if done.count:
    print(f"resumes  after {done.count} of {len(lines)} lines")
  progress = tqdm.tqdm(
      total=len(lines), initial=done.count, unit="lines", disable=None
  )
  # Lines of similar length within a window share batches.
  window = 16 * given.batch_size
  for start in range(done.count, len(lines), window):
    part = slice(start, start + window)
    done.append(
        policy.scored(lines[part], items[part], batch_size=given.batch_size)
    )
    progress.update(len(lines[part]))
  progress.close()
  page = None
  if html:
    # Drawn before `finish`: if it fails, the same command continues here.
    title = f"Information in {pathlib.Path(given.input).name}"
    shown = done.first(given.html_lines)
    page = scores_page.draw(shown, title=title, total=len(lines))
  done.finish()
  print(f"scored {len(lines)} lines of {given.input} to {output}")
  if html:
    # A lone surrogate in a line has no UTF-8 form: the page shows its escape.
    files.write_text(html, page, errors="backslashreplace")
    print(f"page     {html}")


def _places(
    given: argparse.Namespace,
) -> tuple[pathlib.Path, pathlib.Path | None]:
  """Returns the paths of scores and page, which must not exist yet."""
  output = pathlib.Path(given.output)
  html = pathlib.Path(given.html) if given.html else None
  if html and html.resolve() == output.resolve():
    raise ConfigError(f"--html = {str(html)!r}: must not be --output")
  for flag, path in (("output", output), ("html", html)):
    if path is None:
      continue
    if path.exists():
      raise ConfigError(
          f"--{flag} = {str(path)!r}: exists already; name a new file"
      )
    files.make_place(flag, path)
  return output, html
