"""Finds a model, and reads everything but its weights.

A model's place is a Hugging Face folder or a GGUF file, which reads like one.
"""

# Evaluated annotations would make transformers import torch, if installed.
from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import transformers

from iapo_jax.config import rules as config_rules
from iapo_jax.config.model import ModelConfig
from iapo_jax.core import errors, files
from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import families, gguf, gguf_weights

CONFIG = "config.json"
GENERATION = "generation_config.json"
# Folders inside a run: the pretrained model without its weights, and the
# tokenizer if it is not the model's.
KEPT = "pretrained"
TOKENIZER = "tokenizer"
# Files to download from the hub: no code, nothing pickled.
_WANTED = (
    "*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model",
)  # fmt: skip
# Ends of file names; those of hub names are others, such as .5-0.
_FILES = (
    ".json", ".jsonl", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".model",
    ".txt", ".py", ".gz", ".zip",
)  # fmt: skip
_GGUF = "gguf"  # in names of repositories that hold such files
_BY_HAND = (
    "GGUF files on the hub are not downloaded by a run; download one, such as"
    " by `hf download OWNER/NAME FILE.gguf --local-dir=.`, and name it by its"
    " path"
)
_UNWANTED = "consolidated*"  # the same weights in another layout
_NO_PAD = -1  # in the first Llama
_WEIGHTS = ("*.safetensors", "*.index.json")
_TEMPLATES = "additional_chat_templates"  # a folder of named chat templates


def find(
    name: str, *, weights: bool = True, scratch: pathlib.Path | None = None
) -> pathlib.Path:
  """Returns a model's place; downloads a hub repository if it is not cached.

  Args:
    name: a folder, a GGUF file, `smollm2`, or the name of a repository on the
      hub.
    weights: whether to download the weights, too.
    scratch: folder for a download without weights; the hub's cache is read but
      not written then. None downloads to the cache.

  Raises:
    ConfigError: if there is no such folder, file or repository, or `smollm2`
      may mean a folder, too.
  """
  if name == gguf.SMOLLM2:
    check_name(name)
    return gguf.packaged()
  try:
    folder = pathlib.Path(name).expanduser()
    if name and (folder.is_dir() or gguf.is_file(folder)):
      return folder
  except (OSError, ValueError, RuntimeError) as error:
    rule = f"is not a folder or a GGUF file; {errors.reason(error)}"
    raise ConfigError(f"model {name!r}: {rule}") from error
  if _is_path(name):
    why = _why(folder)
    raise ConfigError(f"model {name!r}: is not a folder or a GGUF file; {why}")
  try:
    place = _from_hub(name, weights, scratch)
  except (OSError, ValueError, RuntimeError) as error:
    reason = errors.reason(error)
    hint = f"; {_BY_HAND}" if _GGUF in name.lower() else ""
    raise ConfigError(
        f"model {name!r}: is not a folder or a GGUF file, and could not be"
        f" downloaded from the hub ({reason}){hint}"
    ) from error
  # A dry run has no weights to look for.
  bare = weights and not scratch and not has_weights(place)
  if _GGUF in name.lower() and (bare or not (place / CONFIG).exists()):
    raise ConfigError(f"model {name!r}: {_BY_HAND}")
  return place


def _from_hub(
    name: str, weights: bool, scratch: pathlib.Path | None
) -> pathlib.Path:
  """Returns a snapshot of the hub; the arguments are those of `find`."""
  if not scratch:
    return _download(name, weights)
  try:
    return _download(name, weights, local_files_only=True)
  except (OSError, ValueError):
    return _download(name, False, cache_dir=scratch / "hub")


def check_name(name: str) -> None:
  """Raises `ConfigError` for `smollm2` if something here is called so, too."""
  folder = pathlib.Path(name)
  if name != gguf.SMOLLM2 or not folder.exists():
    return
  try:
    packaged = repr(str(gguf.packaged()))
  except ConfigError:
    packaged = "which is not installed"
  raise ConfigError(
      f"model {name!r}: may be what is here, './{name}', or the model of the"
      f" package, {packaged}; name one of them by its path"
  )


def _download(name: str, weights: bool, **more: Any) -> pathlib.Path:
  """Returns the hub's snapshot of a repository."""
  ignored = [_UNWANTED, *(() if weights else _WEIGHTS)]
  return pathlib.Path(
      huggingface_hub.snapshot_download(
          name, allow_patterns=_WANTED, ignore_patterns=ignored, **more
      )
  )


def _is_path(name: str) -> bool:
  """Returns whether a name can only be a path: hub names are OWNER/NAME."""
  path = pathlib.Path(name)
  if name.startswith(("/", ".", "~")) or name.endswith("/") or "\\" in name:
    return True
  return name.count("/") > 1 or path.suffix in _FILES or path.is_file()


def _why(path: pathlib.Path) -> str:
  """Says why a path is no folder."""
  if path.exists():
    return f"it is a file; name its folder, {str(path.parent)!r}"
  if path.parent.is_dir():
    return f"there is no {path.name!r} in {str(path.parent)!r}"
  # OWNER/NAME/FILE
  on_hub = len(path.parts) == 3 and path.parts[0] not in ("..", path.anchor)
  if path.suffix.lower() == gguf.SUFFIX and on_hub:
    return f"there is no such path; {_BY_HAND}"
  return "there is no such path"


def commit(folder: pathlib.Path) -> str:
  """Returns the commit of a hub snapshot, or "" for any other folder."""
  return folder.name if folder.parent.name == "snapshots" else ""


def has_weights(folder: pathlib.Path) -> bool:
  """Returns whether a place has weights."""
  return gguf.is_file(folder) or any(folder.glob("*.safetensors"))


def quantised(place: pathlib.Path) -> dict[str, int]:
  """Counts the tensors of each type; empty if the weights are plain floats."""
  return gguf_weights.quantised(place) if gguf.is_file(place) else {}


def describe_quantised(counts: Mapping[str, int]) -> str:
  """Says that weights were quantised, with the tensors of each type."""
  told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
  return f"were quantised; tensors: {told}"


def has_tokenizer(place: pathlib.Path) -> bool:
  """Returns whether a place has a tokenizer."""
  return gguf.is_file(place) or (place / "tokenizer.json").exists()


def read_model(folder: pathlib.Path) -> ModelConfig:
  """Reads a model's decoder.

  Raises `ConfigError` if there is no configuration or it is not supported.
  """
  if gguf.is_file(folder):
    with gguf.written(folder, only=(CONFIG,)) as made:
      return _read_model(made, f"{str(folder)!r}, read as a {CONFIG}")
  raw = files.read_json(folder / CONFIG)
  where = f"{folder / CONFIG} model_type"
  families.family_of(raw.get("model_type"), where, raw)
  return _read_model(folder, repr(str(folder)))


def _read_model(folder: pathlib.Path, told: str) -> ModelConfig:
  """Reads the decoder of a config.json; `told` names the place in errors."""
  try:
    theirs = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
  except Exception as error:  # its validation raises many kinds
    text = " ".join(str(error).split())
    raise ConfigError(f"{told}: {CONFIG}: {text}") from error
  try:
    model = families.model_of(theirs)
    config_rules.check_model(model)
  except ConfigError as error:
    raise ConfigError(f"{told}: {error}") from error
  if 0 < model.max_positions <= min(model.windows, default=0):
    # Windows that hold every sequence (Phi-4-mini) cost a mask in each layer.
    model = dataclasses.replace(model, windows=())
  return model


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Special token ids of a model.

  Attributes:
    eos_ids: each ends a completion; may be empty.
    pad_id: fills rows after their end; None if not specified.
  """

  eos_ids: tuple[int, ...]
  pad_id: int | None


def kept(run: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of a run with its model's files and its tokenizer.

  Only the first exists if the run uses its model's tokenizer, only the second
  if it began from random weights. Raises `ConfigError` if the run has neither,
  such as one that was packed as a start of others.
  """
  found = [run / name for name in (KEPT, TOKENIZER) if (run / name).is_dir()]
  if not found:
    raise ConfigError(
        f"{str(run)!r}: has neither {KEPT}/ nor {TOKENIZER}/tokenizer.json,"
        " which a run packed as a start leaves out; use the whole run, or put"
        " its tokenizer there"
    )
  return found


def read_tokens(folder: pathlib.Path) -> Tokens:
  """Reads the ids of `generation_config.json`, else those of `config.json`.

  Raises `ConfigError` if they are not integers of at least 0.
  """
  ends, pads = (_named(folder, f"{kind}_token_id") for kind in ("eos", "pad"))
  pad = next(iter(pads.values()), (_NO_PAD,))[0]
  return Tokens(next(iter(ends.values()), ()), None if pad == _NO_PAD else pad)


def named_ends(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Returns the EOS ids by the file that names them; see `read_tokens`."""
  return _named(folder, "eos_token_id")


def _named(folder: pathlib.Path, name: str) -> dict[str, tuple[int, ...]]:
  """Reads a field of both files, the one that takes precedence first."""
  found = {}
  for file in (GENERATION, CONFIG):
    value = (_content(folder, file) or {}).get(name)
    if value is None:
      continue
    is_list = isinstance(value, list) and name == "eos_token_id"
    ids = value if is_list else [value]
    least = _NO_PAD if name == "pad_token_id" else 0
    for i in ids:
      if type(i) is not int or i < least:
        raise ConfigError(
            f"{folder} {name} = {i!r}: must be an integer of at least 0, or for"
            " eos_token_id a list of such integers"
        )
    if ids:
      found[file] = tuple(ids)
  return found


def _content(place: pathlib.Path, file: str) -> dict[str, Any] | None:
  """Returns the content of a JSON file of a place, None if there is none.

  Of a GGUF file it returns only special token ids.
  """
  if gguf.is_file(place):
    return gguf.special_ids(place)[file]
  path = place / file
  return files.read_json(path) if path.exists() else None


def copy_one(source: pathlib.Path, file: str, target: pathlib.Path) -> None:
  """Copies a small file of a place, if there is one, into a folder."""
  if gguf.is_file(source):
    gguf.write(source, target, only=(file,))
  elif (source / file).exists():
    shutil.copyfile(source / file, target / file)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a tokenizer, with all files of its folder but weights.

  Of a GGUF file, writes no configuration of the model, which may be one that is
  not supported. Creates `target` if needed.
  """
  if not gguf.is_file(source):
    copy_all_but_weights(source, target)
    return
  target.mkdir(parents=True, exist_ok=True)
  gguf.write(source, target, only=(*gguf.OF_TOKENIZER, GENERATION))


def copy_all_but_weights(
    source: pathlib.Path, target: pathlib.Path, skip: tuple[str, ...] = ()
) -> None:
  """Copies a model's configuration and tokenizer files, except those in `skip`.

  Writes what a GGUF file has in place of them. Creates `target` if needed.
  """
  target.mkdir(parents=True, exist_ok=True)
  if gguf.is_file(source):
    gguf.write(source, target, skip=skip)
    return
  for path in sorted(source.iterdir()):
    wanted = any(path.match(pattern) for pattern in _WANTED)
    weights = any(path.match(pattern) for pattern in _WEIGHTS)
    if path.is_file() and wanted and not weights and path.name not in skip:
      shutil.copyfile(path, target / path.name)
  if (source / _TEMPLATES).is_dir():
    copy_all_but_weights(source / _TEMPLATES, target / _TEMPLATES)
