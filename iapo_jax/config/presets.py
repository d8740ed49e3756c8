"""Finds the configurations that come with the package, by name."""

import ast
import inspect
import pathlib
import runpy
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from iapo_jax.core.errors import ConfigError


def folder() -> pathlib.Path:
  """Returns their folder: `_presets` if installed, `configs/` in a clone."""
  here = pathlib.Path(__file__).parent
  installed = here / "_presets"
  return installed if installed.is_dir() else here.parent.parent / "configs"


def names() -> list[str]:
  """Returns every name, sorted."""
  found = (path.stem for path in folder().glob("*.py"))
  return sorted(name for name in found if not name.startswith("_"))


def find(name: str) -> pathlib.Path:
  """Returns the file of a configuration.

  Args:
    name: a path or one of `names`; an existing path wins.

  Raises:
    ConfigError: if it is neither.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  if name in names():
    return folder() / f"{name}.py"
  raise ConfigError(
      f"--config = {name!r}: must be a file or one of {', '.join(names())}"
  )


def listing() -> str:
  """Returns a line per name, with the first line of its docstring."""
  lines = {name: _first_line(name) for name in names()}
  width = max(map(len, lines), default=0)
  return "\n".join(f"  {name:<{width}}  {x}" for name, x in lines.items())


def _first_line(name: str) -> str:
  text = (folder() / f"{name}.py").read_text(encoding="utf-8")
  return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def parts(
    variant: str | None, kinds: Sequence[Collection[str]]
) -> list[str]:
  """Splits a variant, words joined by `-`, into one word of each kind.

  A kind that the variant does not mention takes its first word.

  Raises:
    ConfigError: for an unknown word, or two words of a kind.
  """
  chosen: list[str | None] = [None] * len(kinds)
  for part in variant.split("-") if variant else ():
    kind = next((i for i, names in enumerate(kinds) if part in names), None)
    if kind is None or chosen[kind] is not None:
      choices = "; ".join(", ".join(names) for names in kinds)
      one = "must be exactly one of"
      many = "is unknown or repeats a kind; the kinds are"
      rule = one if len(kinds) == 1 else many
      raise ConfigError(f"variant {variant!r}: {part!r} {rule} {choices}")
    chosen[kind] = part
  return [
      part or next(iter(names))
      for part, names in zip(chosen, kinds, strict=True)
  ]


def read(name: str) -> dict[str, Any]:
  """Runs the file of a configuration and returns its globals."""
  return runpy.run_path(str(folder() / f"{name}.py"))


def load(name: str) -> ConfigDict:
  """Returns the configuration NAME[:VARIANT] for the caller to change.

  NAME is a name or a path.

  Raises:
    ConfigError: for an unknown name or variant, or if the file fails.
  """
  file, colon, variant = name.partition(":")
  path = find(file)
  try:
    get_config = runpy.run_path(str(path)).get("get_config")
    if not callable(get_config):
      raise ConfigError(f"--config = {file!r}: must define get_config()")
    if colon and not inspect.signature(get_config).parameters:
      rule = f"{file} has no variants; use --config={file}"
      raise ConfigError(f"variant {variant!r}: {rule}")
    config = get_config(variant) if colon else get_config()
    if not isinstance(config, ConfigDict | Mapping):
      rule = "get_config() must return a ConfigDict"
      raise ConfigError(f"--config = {file!r}: {rule}")
    return ConfigDict(config)
  except ConfigError:
    raise
  except Exception as error:  # a user's file may raise anything
    frames = traceback.extract_tb(error.__traceback__)
    lines = [x.lineno for x in frames if x.filename == str(path)]
    place = f", line {lines[-1]}" if lines else ""
    problem = f"{type(error).__name__}: {error}"
    raise ConfigError(f"--config = {file!r}{place}: {problem}") from error
