"""A Hugging Face folder: found, and read but for its weights."""

# transformers imports torch, where there is one, to say what its classes are.
from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import huggingface_hub
import transformers

from iapo_jax.config import rules as config_rules
from iapo_jax.config.model import ModelConfig
from iapo_jax.core import errors, files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import families

CONFIG = "config.json"
GENERATION = "generation_config.json"
# Of a run: the model's folder without its weights, and the tokenizer where it
# is not the model's.
KEPT = "pretrained"
TOKENIZER = "tokenizer"
# What is fetched of a hub's repository: no code, nothing pickled.
_WANTED = (
    "*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model",
)  # fmt: skip
_UNWANTED = "consolidated*"  # the same weights once more, in another layout
_WEIGHTS = ("*.safetensors", "*.index.json")


def find(name: str, *, weights: bool = True) -> pathlib.Path:
  """The folder of a model.

  Args:
    name: a folder, or the name of a repository on the hub, which is fetched
      unless it was before.
    weights: whether they are wanted, too.

  Returns:
    The folder.

  Raises:
    ConfigError: where there is neither.
  """
  try:
    folder = pathlib.Path(name).expanduser()
    if name and folder.is_dir():
      return folder
    return pathlib.Path(
        huggingface_hub.snapshot_download(
            name,
            allow_patterns=_WANTED,
            ignore_patterns=[_UNWANTED, *(() if weights else _WEIGHTS)],
        )
    )
  except (OSError, ValueError, RuntimeError) as error:
    reason = errors.reason(error)
    raise ConfigError(
        f"model {name!r}: is no folder, and could not be fetched from the hub"
        f" ({reason})"
    ) from error


def commit(folder: pathlib.Path) -> str:
  """Of the hub's repository that a folder is a snapshot of, or nothing."""
  return folder.name if folder.parent.name == "snapshots" else ""


def read_config(folder: pathlib.Path) -> transformers.PreTrainedConfig:
  """A folder's configuration, as transformers understands it.

  Args:
    folder: of a model.

  Returns:
    The configuration.

  Raises:
    ConfigError: where there is none, or it is of no supported family.
  """
  raw = files.read_json(folder / CONFIG)
  families.family_of(raw.get("model_type"), f"{folder / CONFIG} model_type")
  try:
    return transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # its validation raises many kinds
    text = " ".join(str(error).split())
    raise ConfigError(f"{folder / CONFIG}: {text}") from error


def read_model(folder: pathlib.Path) -> ModelConfig:
  """The decoder in a folder.

  Args:
    folder: of a model.

  Returns:
    The decoder, as of `families.model_of`.

  Raises:
    ConfigError: where it is not supported.
  """
  theirs = read_config(folder)
  try:
    model = families.model_of(theirs)
    config_rules.check_model(model)
  except ConfigError as error:
    raise ConfigError(f"{str(folder)!r}: {error}") from error
  return model


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The token ids that end and fill what a model generates.

  Attributes:
    eos_ids: any of which ends a completion; may be empty.
    pad_id: None where nobody says.
  """

  eos_ids: tuple[int, ...]
  pad_id: int | None


def read_tokens(folder: pathlib.Path) -> Tokens:
  """The ids of `generation_config.json`; what it leaves open, of the config.

  Args:
    folder: of a model.

  Returns:
    The ids.

  Raises:
    ConfigError: where they are no ids.
  """
  chosen: dict[str, Any] = {}
  for file in (CONFIG, GENERATION):  # the latter has the last word
    if (folder / file).exists():
      found = files.read_json(folder / file)
      keys = ("eos_token_id", "pad_token_id")
      chosen |= {k: found[k] for k in keys if found.get(k) is not None}
  ends, pad = chosen.get("eos_token_id", []), chosen.get("pad_token_id")
  ends = ends if isinstance(ends, list) else [ends]
  if pad == -1:  # as the first Llama said that it has none
    pad = None
  for name, ids in (("eos_token_id", ends), ("pad_token_id", [pad or 0])):
    for i in ids:
      if type(i) is not int or i < 0:
        raise ConfigError(
            f"{folder} {name} = {i!r}: must be a whole number from 0, or for"
            " eos_token_id a list of them"
        )
  return Tokens(tuple(ends), pad)


def copy_all_but_weights(
    source: pathlib.Path, target: pathlib.Path, skip: tuple[str, ...] = ()
) -> None:
  """Copies a folder's configuration and tokenizer, byte by byte.

  Args:
    source: of a model.
    target: made if need be.
    skip: names that are left out.
  """
  target.mkdir(parents=True, exist_ok=True)
  for path in sorted(source.iterdir()):
    wanted = any(path.match(pattern) for pattern in _WANTED)
    weights = any(path.match(pattern) for pattern in _WEIGHTS)
    if path.is_file() and wanted and not weights and path.name not in skip:
      shutil.copyfile(path, target / path.name)
