"""Turns a configuration file into a checked `Config`.

A configuration file returns an `ml_collections.ConfigDict`, usually `default()`
with fields set. `parse` turns it into frozen dataclasses, or raises an error
with the field, the value and the rule that it breaks.
"""

import ast
import dataclasses
import difflib
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from iapo_jax.config import fields, formats, rules
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError, fail

# Folders of data. A resumed run compares their content (`splits.fingerprint`).
PLACES_OF_DATA = ("data.source_dir", "data.prepared_dir")
# Fields that may change when a run resumes.
FREE = ("debug", "log.wandb", *PLACES_OF_DATA)


def default() -> ml_collections.ConfigDict:
  """Returns the defaults as a ConfigDict that a file can change."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  # None, but flags may set them.
  config.model.vocab_size = placeholder(int)
  for group, names in formats.OF_PRESET.items():
    for name in names:
      config[group][name] = placeholder(type(config[group][name]))
  return config


def parse(config: Mapping[str, Any]) -> Config:
  """Builds and checks a `Config`.

  Args:
    config: a ConfigDict or nested mapping; missing fields take defaults.

  Raises:
    ConfigError: for an unknown field, a wrong type or a broken rule.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  parsed = _build(Config, formats.filled(config), "")
  rules.check(parsed)
  return parsed


def checked(c: Config) -> Config:
  """Checks a changed configuration like one that a user wrote."""
  return parse(dataclasses.asdict(c))


def _build(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
  """Fills dataclass `cls` from a mapping, checking names and types."""
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in hints:
      full = f"{prefix}{name}"
      fail(full, values[name], f"unknown field{suggestion(full)}")
  filled = {}
  for name, value in values.items():
    kind = hints[name]
    field = prefix + name
    if dataclasses.is_dataclass(kind):
      if not isinstance(value, Mapping):
        fail(field, value, "must be a group of fields")
      filled[name] = _build(kind, value, field + ".")
    else:
      filled[name] = _convert(field, value, kind)
  return cls(**filled)


def suggestion(name: str) -> str:
  """Returns a hint for an unknown dotted name, to append to an error.

  Suggests a field to which other trainers give this name, or that has it in
  another group; else one whose name has all words of this one (`kl`), that this
  one abbreviates (`temp`, `eval.samples`), or with a similar spelling.
  """
  group, _, last = name.rpartition(".")
  known = list(fields.describe(Config()))

  def named(alike: Callable[[str, str], bool]) -> list[str]:
    found = [
        x.name
        for x in known
        if any(alike(last.lower(), y) for y in (_last(x.name), *x.aliases))
    ]
    # If several fields match, those of the name's group win.
    return [x for x in found if group and _in_group(group, x)] or found

  same = named(operator.eq)
  if not same:
    parts = [x for x in named(_is_part) if _is_part(last.lower(), _last(x))]
    same = parts if len(parts) <= 2 else []
  same = same or named(_abbreviates)
  if not same:
    spelled = {x.name: x.name for x in known}
    if not group:
      spelled |= {_last(x.name): x.name for x in known}
    close = difflib.get_close_matches(name, spelled, n=1, cutoff=0.8)
    same = [spelled[x] for x in close]
  found = " or ".join(f"config.{x}" for x in same[:2])
  return f"; did you mean {found}?" if found else "; see `iapo fields`"


def _last(name: str) -> str:
  return name.rpartition(".")[2]


def _in_group(group: str, name: str) -> bool:
  """Returns whether a field is in a group, whose name may be abbreviated."""
  shorts, longs = group.split("."), name.split(".")[:-1]
  if len(shorts) > len(longs):
    return False
  pairs = zip(shorts, longs, strict=False)
  return all(x == y or _abbreviates(x, y) for x, y in pairs)


def _abbreviates(short: str, long: str) -> bool:
  """Returns whether a name is a shorter or a joined spelling of another.

  It has the other's initials (`wd`), or as many words, each with letters of the
  other's word in their order and its first one (`max_toks`).
  """
  shorts, longs = re.split("[_-]", short), long.split("_")
  joined = "".join(shorts)
  if len(joined) < 2:
    return False
  if joined in ("".join(longs), "".join(word[:1] for word in longs)):
    return True
  return len(shorts) == len(longs) and all(
      x[:1] == y[:1] and _is_subsequence(x, y)
      for x, y in zip(shorts, longs, strict=True)
  )


def _is_subsequence(short: str, long: str) -> bool:
  letters = iter(long)
  return all(letter in letters for letter in short)


def _is_part(name: str, field: str) -> bool:
  """Returns whether every word of a name is a word of a field's name."""
  return set(name.split("_")) <= set(field.split("_"))


def taker(group: str, text: str) -> str:
  """Returns a field of a group that takes a text as its value, `NAME=TEXT`.

  Prefers a field that takes only a few words. Returns the first field's name if
  none takes it.
  """
  within = [
      x for x in fields.describe(Config()) if x.name.startswith(f"{group}.")
  ]
  depth = group.count(".") + 1
  inside = [x for x in within if x.name.count(".") == depth]
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = {"true": True, "false": False}.get(text, text)
  taking = [x for x in inside if _takes(x.name, value)]
  taking.sort(key=lambda x: not x.rule.startswith("one of"))
  return f"{taking[0].name}={text}" if taking else inside[0].name


def _takes(name: str, value: Any) -> bool:
  nested: Any = value
  for part in reversed(name.split(".")):
    nested = {part: nested}
  try:
    fields.check(_build(Config, nested, ""))
  except ConfigError:
    return False
  return True


def _convert(field: str, value: Any, kind: Any) -> Any:
  """Checks the type of a value; converts int to float and list to tuple."""
  if isinstance(kind, types.UnionType):  # int | None
    if value is None:
      return None
    kind = next(x for x in typing.get_args(kind) if x is not type(None))
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      fail(field, value, "must be a list")
    item = typing.get_args(kind)[0]
    return tuple(
        _convert(f"{field}[{i}]", entry, item) for i, entry in enumerate(value)
    )
  number = isinstance(value, int) and not isinstance(value, bool)
  if kind is float and number:
    try:
      return float(value)
    except OverflowError:
      fail(field, value, "must be finite")
  if not isinstance(value, kind) or (kind is int and not number):
    fail(field, value, f"must be of type {kind.__name__}")
  if kind is float and not math.isfinite(value):
    fail(field, value, "must be finite")
  return value


def flatten(c: Config) -> dict[str, Any]:
  """Returns every field by its dotted name, as in JSON (tuples are lists)."""

  def visit(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    for known in dataclasses.fields(node):
      value = getattr(node, known.name)
      if dataclasses.is_dataclass(value):
        yield from visit(f"{prefix}{known.name}.", value)
      else:
        as_list = isinstance(value, tuple)
        yield prefix + known.name, list(value) if as_list else value

  return dict(visit("", c))
