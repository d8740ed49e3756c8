"""Lists the fields of a configuration: default, rule, meaning.

  iapo fields
  iapo fields rollout
  iapo fields loss.clip_low

A field is set with --config.NAME=VALUE after `iapo train --config=...`.
"""

import argparse
import textwrap

from iapo_jax.cli import command
from iapo_jax.config import fields, parsing
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  parser.add_argument(
      "part", nargs="?", default="", metavar="PART", help="a group or a field"
  )


def run(given: argparse.Namespace) -> None:
  """Prints the fields of a part, or all of them."""
  part = given.part.removeprefix("config.")
  chosen = [
      x
      for x in fields.describe(Config())
      if not part or x.name == part or x.name.startswith(f"{part}.")
  ]
  if not chosen:
    hint = parsing.suggestion(part)
    raise ConfigError(f"PART = {given.part!r}: no such field or group{hint}")
  print("\n".join(map(_entry, chosen)))


def _entry(x: fields.Described) -> str:
  rule = f"; must be {x.rule}" if x.rule else ""
  head = f"{x.name} = {x.default!r}{rule}"
  body = textwrap.wrap(
      x.doc, 80, initial_indent="    ", subsequent_indent="    "
  )
  return "\n".join([*textwrap.wrap(head, 80, subsequent_indent="  "), *body])
