"""Loads a policy from a run, a Hugging Face folder, a GGUF file or the hub."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iapo_jax.config import formats
from iapo_jax.config import model as model_config
from iapo_jax.config.data import DataConfig, chat_arguments, is_date
from iapo_jax.config.formats import FormatConfig
from iapo_jax.config.model import ModelConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params
from iapo_jax.data import task
from iapo_jax.hf import ends as ends_lib
from iapo_jax.hf import folder, weights
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.run import checkpoint as checkpoint_lib
from iapo_jax.run import places, sources
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.tools import export as export_lib
from iapo_jax.tools import score_lines, scoring


@dataclasses.dataclass(frozen=True)
class Policy:
  """A policy in memory.

  Attributes:
    source: the checkpoint of a run, a Hugging Face folder or a GGUF file.
    cfg: the decoder.
    params: its weights, on the first device.
    rules: how text becomes tokens.
  """

  source: sources.Source | pathlib.Path
  cfg: ModelConfig
  params: Params
  rules: score_lines.Rules

  def score(
      self, texts: Sequence[Mapping[str, Any]], *, batch_size: int = 8
  ) -> list[score_lines.Line]:
    """Scores how much each token of reasoning reveals about the answer.

    Args:
      texts: each with `prompt` and `completion`, or as token ids; the formats
        are those of `iapo score`.
      batch_size: texts per call.

    Returns:
      The texts with their scores added, by `score_lines.scored`.

    Raises:
      ConfigError: names the first text that breaks a rule, or `batch_size`.
    """
    if batch_size < 1:
      raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
    lines = [dict(text) for text in texts]
    items = [
        score_lines.placed(line, self.rules, f"text {i}")
        for i, line in enumerate(lines)
    ]
    score_lines.tell_unknown(items, self.rules)
    return list(self.scored(lines, items, batch_size=batch_size))

  def scored(
      self,
      lines: Sequence[score_lines.Line],
      items: Sequence[scoring.Item],
      *,
      batch_size: int,
  ) -> Iterator[score_lines.Line]:
    """Yields lines with the scores of their items, in order."""
    found = dict(
        scoring.score(self.params, items, cfg=self.cfg, batch_size=batch_size)
    )
    for i, (line, item) in enumerate(zip(lines, items, strict=True)):
      yield score_lines.scored(line, item, found[i], self.rules.tokenizer)

  def export(
      self, output: str | pathlib.Path, *, dtype: str = "float32"
  ) -> None:
    """Writes the policy as a Hugging Face folder.

    Args:
      output: a folder that does not exist yet.
      dtype: of the weights: float32, bfloat16 or float16.

    Raises:
      ConfigError: if `output` exists or cannot be written.
    """
    output = pathlib.Path(output)
    if isinstance(self.source, sources.Source):
      export_lib.export(self.source, output, dtype=dtype)
    else:
      export_lib.convert(self.source, output, self.params, self.cfg, dtype)


def load(
    model: str | pathlib.Path,
    *,
    checkpoint: str = "last",
    dtype: str = "float32",
    tokenizer: str | None = None,
    preset: str | None = None,
    elicitation: str | None = None,
    chat: bool = False,
    chat_date: str = "2026-01-01",
) -> Policy:
  """Loads a policy onto the first device.

  Args:
    model: the folder of a run, a Hugging Face folder, a GGUF file, `smollm2`
      or a hub name.
    checkpoint: of a run: last, best or an RL step.
    dtype: of weights and matmuls: float32 or bfloat16.
    tokenizer: folder, GGUF file or hub name, if it is not the model's.
    preset: the format of the texts, one of `formats.PRESETS`; by default the
      run's, or think_answer.
    elicitation: text that ends the reasoning and asks for the answer; by
      default the run's, or that of the preset.
    chat: whether every text prompt is a user's message.
    chat_date: YYYY-MM-DD, the day that chat templates print as today.

  Raises:
    ConfigError: if there is no such model, or its parts do not fit.
  """
  if not is_date(chat_date):
    raise ConfigError(
        f"--chat_date = {chat_date!r}: must be a date, YYYY-MM-DD"
    )
  if preset not in (None, *formats.PRESETS):
    names = ", ".join(formats.PRESETS)
    raise ConfigError(f"--format = {preset!r}: must be one of {names}")
  form, data = formats.of(preset or formats.PRESETS[0]), DataConfig()
  path = pathlib.Path(model)
  if isinstance(model, str):
    folder.check_name(model)
  # Both kinds of folder have a config.json.
  is_run = checkpoint_lib.stage_folder(path, "").is_dir()
  if is_run:
    source = sources.chosen(path, checkpoint)
    run = workdir_lib.load_config(path)
    cfg, data = run.model, run.data
    if not preset:
      form, elicitation = run.format, elicitation or run.probe.elicitation
    there = folder.kept(path)
    place, words = there[0], there[-1]
    counts = workdir_lib.quantised(path)
  else:
    source = place = words = folder.find(str(model))
    places.check(place, "--model", "policy")
    cfg = folder.read_model(place)
    counts = folder.quantised(place)
  cfg = dataclasses.replace(cfg, dtype=dtype)
  if tokenizer:
    words = folder.find(tokenizer, weights=False)
    places.check(words, "--tokenizer", "tokenizer")
  elicitation = elicitation or formats.elicitation_of(form.preset)
  rules = _rules(place, words, cfg, form, elicitation)
  if is_run:
    params = export_lib.load(source, cfg)
  else:
    params = weights.load(place, cfg, dtype=dtype)
  rules = dataclasses.replace(
      rules, chat=chat, date=chat_date, arguments=chat_arguments(data),
      system=data.system,
  )  # fmt: skip
  if counts:
    print(f"weights  {folder.describe_quantised(counts)}", flush=True)
  return Policy(source, cfg, params, rules)


def _rules(
    place: pathlib.Path,
    words: pathlib.Path,
    cfg: ModelConfig,
    form: FormatConfig,
    elicitation: str,
) -> score_lines.Rules:
  """Returns how text becomes tokens, by the folders of model and tokenizer."""
  tokens = folder.read_tokens(place)
  tok, ends, ids = None, tokens.eos_ids, ()
  if words != place or folder.has_tokenizer(words):
    tok = tokenizer_lib.load(words)
    ends = ends_lib.find(tok, tokens.eos_ids, chat=True)
    ids = task.elicitation_ids(tok, elicitation, "--elicitation")
    if max(ids) >= cfg.vocab_size:
      raise ConfigError(
          f"--elicitation = {elicitation!r}: has token {max(ids)}, but the"
          f" model's tokens are below {cfg.vocab_size}"
      )
  return score_lines.Rules(
      vocab_size=cfg.vocab_size,
      max_positions=model_config.longest(cfg),
      tokenizer=tok,
      eos_ids=ends,
      elicitation=ids,
      form=form,
  )
