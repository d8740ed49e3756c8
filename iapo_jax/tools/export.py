"""Writes a run's policy as a Hugging Face folder that transformers can load."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import transformers
from flax import linen as nn

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.model import LONGROPE, ModelConfig
from iapo_jax.config.schema import Config
from iapo_jax.core import files, markdown
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Params, Vocabulary
from iapo_jax.data import task as task_lib
from iapo_jax.hf import families, folder, spellings, weights
from iapo_jax.hf import tokenizer as tokenizer_lib
from iapo_jax.models import transformer
from iapo_jax.run import checkpoint, evaluation, sources
from iapo_jax.run import workdir as workdir_lib

_CONFIGS = (folder.CONFIG, folder.GENERATION)
# Fields of the configuration that the card shows.
_SHOWN = (
    "model.family", "model.num_layers", "model.d_model", "model.vocab_size",
    "prompts_per_step", "group_size", "rollout.max_tokens",
    "rollout.temperature", "credit.mode", "credit.info_weight",
    "credit.explore_weight", "credit.discount", "loss.kl_weight",
    "optimizer.learning_rate", "seed",
)  # fmt: skip


def export(
    source: sources.Source,
    output: pathlib.Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 10**9,
    family: str = "",
) -> list[str]:
  """Writes a checkpoint as a Hugging Face folder, whole or not at all.

  Everything happens on one device; one CPU is enough for every run.

  Args:
    source: the checkpoint.
    output: a folder that does not exist yet.
    dtype: of the weights; float32 keeps them exactly as trained.
    max_shard_bytes: largest file of weights.
    family: replaces `config.model.family`, only for a run that began from
      random weights.

  Returns:
    The names of the files in the folder.

  Raises:
    ConfigError: if `output` exists or cannot be written, the checkpoint is
      damaged, or no family of transformers has such a decoder.
  """
  folder.kept(source.workdir)  # raises for a run without tokenizer
  if family and (source.workdir / folder.KEPT).is_dir():
    raise ConfigError(
        f"--family = {family!r}: leave it out; the run began from a pretrained"
        " model, which has a family"
    )
  cfg = workdir_lib.load_config(source.workdir)
  if family:
    model = dataclasses.replace(cfg.model, family=family)
    cfg = dataclasses.replace(cfg, model=model)
  with _drafted(output) as draft:
    write_configs(source.workdir, draft, cfg, dtype)
    note = _mend_tokenizer(draft)
    params = load(source, cfg.model)
    weights.save(
        draft, params, cfg.model, dtype=dtype, max_shard_bytes=max_shard_bytes
    )
    card = model_card(source, cfg, output.name, dtype, note)
    (draft / "README.md").write_text(card, encoding="utf-8", errors="replace")
  return sorted(path.name for path in output.iterdir())


def convert(
    place: pathlib.Path,
    output: pathlib.Path,
    params: Params,
    cfg: ModelConfig,
    dtype: str,
) -> None:
  """Writes the weights of a model anew, with its other files.

  Args:
    place: the folder or GGUF file that the weights came from.
    output: a folder that does not exist yet.
    params: the decoder's weights.
    cfg: the decoder.
    dtype: of the new weights.

  Raises:
    ConfigError: if `output` exists or cannot be written.
  """
  with _drafted(output) as draft:
    _copy_pretrained(place, place, draft, cfg, dtype)
    _mend_tokenizer(draft)
    weights.save(draft, params, cfg, dtype=dtype)


@contextlib.contextmanager
def _drafted(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a folder to fill, which becomes `output`, whole or not at all."""
  if output.exists():
    raise ConfigError(
        f"--output = {str(output)!r}: exists already; name a new folder"
    )
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True
    ) as name:
      # Only its owner can read a temporary folder; one inside it follows the
      # umask.
      draft = pathlib.Path(name) / output.name
      draft.mkdir()
      with _reading(draft):
        yield draft
      draft.rename(output)
  except OSError as error:
    raise ConfigError(
        f"--output = {str(output)!r}: cannot be written ({error.strerror})"
    ) from error


def _mend_tokenizer(draft: pathlib.Path) -> str | None:
  """Makes the tokenizer load everywhere; returns what its user must know."""
  spellings.mend_tokenizer(draft)
  note = spellings.auto_fault(draft)
  if note:
    print(f"warning: {note}", flush=True)
  return note


@contextlib.contextmanager
def _reading(draft: pathlib.Path) -> Iterator[None]:
  """Raises ConfigError if a file outside of the draft cannot be read."""
  try:
    yield
  except OSError as error:
    names = [x for x in (error.filename, error.filename2) if x]
    if not names or any(pathlib.Path(x).is_relative_to(draft) for x in names):
      raise
    rule = f"is needed, but cannot be read ({error.strerror})"
    raise ConfigError(f"{str(names[0])!r}: {rule}") from error


def load(source: sources.Source, cfg: ModelConfig) -> Params:
  """Loads the policy of a checkpoint, whole, onto the first device."""
  init = functools.partial(transformer.init, cfg=cfg)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  where = jax.tree.map(lambda _: device, shapes)
  return checkpoint.load_params(source.folder, source.step, shapes, where)


def write_configs(
    workdir: pathlib.Path, output: pathlib.Path, cfg: Config, dtype: str
) -> None:
  """Writes configurations and tokenizer, of the pretrained model or new.

  Args:
    workdir: the folder of a run.
    output: an existing folder.
    cfg: the run's configuration.
    dtype: of the weights.
  """
  kept, source = workdir / folder.KEPT, workdir / folder.TOKENIZER
  if kept.is_dir():
    words = source if source.is_dir() else kept
    _copy_pretrained(kept, words, output, cfg.model, dtype)
    vocabulary = _vocabulary(words, kept, cfg)
    spellings.name_ends(output, vocabulary.eos_ids)
    return
  folder.copy_all_but_weights(source, output, skip=_CONFIGS)
  vocabulary = _vocabulary(source, source, cfg)
  ends = list(vocabulary.eos_ids)
  ids = {
      "bos_token_id": tokenizer_lib.load(source).bos_token_id,
      "eos_token_id": ends[0] if len(ends) == 1 else ends,
      "pad_token_id": vocabulary.pad_id,
  }
  length = cfg.data.max_prompt_tokens + cfg.rollout.max_tokens
  length += len(vocabulary.elicitation)
  model = dataclasses.replace(
      cfg.model, max_positions=cfg.model.max_positions or length
  )
  family = families.family_of(model.family, "config.model.family")
  theirs = families.config_of(
      model, dtype=dtype, architectures=[family.architecture], **ids
  )
  theirs.save_pretrained(output)
  raw = files.read_json(output / folder.CONFIG)
  spellings.write_config(output, raw, model, dtype)
  generation = transformers.GenerationConfig(
      do_sample=True, temperature=cfg.rollout.temperature, **ids
  )
  generation.save_pretrained(output)


def _vocabulary(
    words: pathlib.Path, place: pathlib.Path, cfg: Config
) -> Vocabulary:
  """Returns the run's tokens, by the folders of tokenizer and configuration."""
  return task_lib.vocabulary_of(
      tokenizer_lib.load(words),
      cfg.probe.elicitation,
      folder.read_tokens(place),
      chat=cfg.data.chat_template,
      size=cfg.model.vocab_size,
  )


def _copy_pretrained(
    place: pathlib.Path,
    words: pathlib.Path,
    output: pathlib.Path,
    cfg: ModelConfig,
    dtype: str,
) -> None:
  """Copies a model's configurations and a tokenizer; sets the new dtype.

  `words` is the place of the tokenizer, whose files are copied with all others
  of that folder but weights.
  """
  folder.copy_all_but_weights(words, output, skip=_CONFIGS)
  for file in _CONFIGS:
    folder.copy_one(place, file, output)
  raw = files.read_json(output / folder.CONFIG)
  spellings.write_config(output, raw, cfg, dtype)


def model_card(
    source: sources.Source,
    cfg: Config,
    name: str,
    dtype: str,
    note: str | None = None,
) -> str:
  """Returns the README of the folder, with the header that the hub reads.

  It says what the model is, how it was made and how it writes. `note` is for
  whoever loads it.
  """
  origin = "a pretrained model" if cfg.model.pretrained else "random weights"
  if cfg.init_from:  # a path, which means nothing on another machine
    origin = "the policy of another run"
  if counts := workdir_lib.quantised(source.workdir):
    origin += f" (weights {folder.describe_quantised(counts)})"
  flat = config_lib.flatten(cfg)
  return "\n".join([
      "---",
      'library_name: "transformers"',
      'pipeline_tag: "text-generation"',
      'tags: ["iapo", "reinforcement-learning", "reasoning"]',
      "---",
      "",
      f"# {name}",
      "",
      f"Checkpoint `{source.name}` (stage/step) of a run of iapo_jax"
      f" configured for {cfg.warm_start.num_steps} supervised steps and"
      f" {cfg.num_steps} steps of reinforcement learning with"
      f" `{cfg.credit.mode}` credit (IAPO, arXiv 2602.19049). It began from"
      f" {origin}. Weights are {dtype}.",
      "",
      "Its licence is that of the model and data that it was trained from.",
      "",
      markdown.table(
          ("setting", "value"),
          ((field, str(flat[field])) for field in _SHOWN),
      ),
      "",
      *_result(source),
      f"{cfg.format.described} Early answers are elicited by"
      f" {json.dumps(cfg.probe.elicitation)}.",
      "",
      *(
          f"Note: {text}.\n" for text in (rotary_note(cfg.model), note) if text
      ),
  ])


def rotary_note(model: ModelConfig) -> str | None:
  """Says where other programs use other factors of longrope; None if nowhere.

  They choose by the length of each sequence (transformers), or by the longest
  one allowed (vLLM).
  """
  if model.rope.kind != LONGROPE:
    return None
  most = model.rope.original_positions
  if model.rope_factors == "short":
    return (
        "trained with the short factors of longrope, which transformers has for"
        f" sequences of at most {most} tokens; in vLLM, set max_model_len to"
        f" {most}"
    )
  return (
      "trained with the long factors of longrope, which vLLM has if"
      f" max_model_len is above {most}; transformers has short ones for"
      f" sequences of at most {most} tokens"
  )


def _result(source: sources.Source) -> list[str]:
  """Returns the test result, if the run ended with this checkpoint."""
  path = source.workdir / workdir_lib.SUMMARY
  if not path.exists():
    return []
  found = files.read_json(path)
  if found["checkpoint"] != source.name:
    return []
  text = evaluation.sampled(found)
  return [
      f"On {found['problems']:.0f} test problems of its task: accuracy"
      f" {found['accuracy']:.3f} ± {found['accuracy_se']:.3f} (standard error"
      f" over problems), {found['mean_tokens']:.1f} tokens a completion."
      f"{f' Sampling: {text}.' if text else ''}",
      "",
  ]
