"""The configurations that come with the package, found by name."""

import ast
import pathlib
import runpy
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from iapo_jax.core.errors import ConfigError


def folder() -> pathlib.Path:
  """Where they are: in the package once installed, `configs/` in a clone."""
  here = pathlib.Path(__file__).parent
  installed = here / "_presets"
  return installed if installed.is_dir() else here.parent.parent / "configs"


def names() -> list[str]:
  """Every name, sorted."""
  found = (path.stem for path in folder().glob("*.py"))
  return sorted(name for name in found if not name.startswith("_"))


def find(name: str) -> pathlib.Path:
  """The file of a configuration.

  Args:
    name: a path, which wins, or one of `names`.

  Raises:
    ConfigError: where there is neither.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  if name in names():
    return folder() / f"{name}.py"
  raise ConfigError(
      f"--config = {name!r}: no such file, and no configuration of that name;"
      f" there are {', '.join(names())}"
  )


def listing() -> str:
  """A line for each name: the first of its file."""
  lines = {name: _first_line(name) for name in names()}
  width = max(map(len, lines), default=0)
  return "\n".join(f"  {name:<{width}}  {x}" for name, x in lines.items())


def _first_line(name: str) -> str:
  text = (folder() / f"{name}.py").read_text(encoding="utf-8")
  return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def parts(
    variant: str | None, kinds: Sequence[Collection[str]]
) -> list[str]:
  """One word of each kind: those that a variant joins by `-`, else the first.

  Raises:
    ConfigError: for an unknown word, or two of a kind.
  """
  chosen: list[str | None] = [None] * len(kinds)
  for part in variant.split("-") if variant else ():
    kind = next((i for i, names in enumerate(kinds) if part in names), None)
    if kind is None or chosen[kind] is not None:
      rule = "; ".join(", ".join(names) for names in kinds)
      each = " each of:" if len(kinds) > 1 else ""
      raise ConfigError(
          f"variant {variant!r}: {part!r} must be one of{each} {rule}"
      )
    chosen[kind] = part
  return [
      part or next(iter(names))
      for part, names in zip(chosen, kinds, strict=True)
  ]


def read(name: str) -> dict[str, Any]:
  """What the file of a configuration defines."""
  return runpy.run_path(str(folder() / f"{name}.py"))


def load(name: str) -> ConfigDict:
  """The configuration NAME[:VARIANT], by name or path, to be changed.

  Raises:
    ConfigError: for no such name or variant.
  """
  file, colon, variant = name.partition(":")
  get_config = runpy.run_path(str(find(file)))["get_config"]
  return get_config(variant) if colon else get_config()
