"""The argument `--config`, with fields set after it."""

import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from iapo_jax.cli.command import Parser
from iapo_jax.config import parsing, presets
from iapo_jax.config.schema import Config
from iapo_jax.core.errors import ConfigError

_OVERRIDE = "--config."


def add_argument(parser: Parser) -> None:
  """Adds `--config`, and describes the field flags that `load` parses."""
  parser.add_argument(
      "--config",
      metavar="NAME[:VARIANT]",
      help="name or file of a configuration; without it: lists the names",
  )
  parser.add_argument_group(
      "fields",
      "--config.FIELD=VALUE sets a field of the configuration;"
      " `iapo fields` lists them",
  )


def load(given: str | None, overrides: Sequence[str]) -> tuple[Config, str]:
  """Loads and checks the configuration of `--config`, with fields set.

  Args:
    given: NAME or FILE, perhaps with :VARIANT.
    overrides: the arguments `--config.FIELD=VALUE`.

  Returns:
    The configuration; NAME[-VARIANT], which names a run of it.

  Raises:
    ConfigError: if there is no such configuration, variant or field, or a field
      breaks a rule.
  """
  if given is None:
    print(f"configurations:\n{presets.listing()}")
    raise ConfigError("--config: missing; name one of the above, or a file")
  config = presets.load(given)
  _check_names(overrides)
  values = flags.FlagValues()
  argv = ["iapo", *overrides]
  config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=argv
  )
  try:
    rest = values(argv)[1:]
  except flags.Error as error:
    raise ConfigError(str(error)) from error
  if rest:
    raise ConfigError(f"unknown argument {rest[0]!r}")
  file, _, variant = given.partition(":")
  label = "-".join(filter(None, (pathlib.Path(file).stem, variant)))
  return parsing.parse(values["config"].value), label


def _check_names(overrides: Sequence[str]) -> None:
  """Checks that fields exist; the error of ml_collections is unclear."""
  known = parsing.flatten(Config())
  for argument in overrides:
    name, _, value = argument.removeprefix(_OVERRIDE).partition("=")
    if argument.startswith(_OVERRIDE) and name not in known:
      if any(x.startswith(f"{name}.") for x in known):
        rule = (
            "is a group of fields; set one, such as"
            f" --config.{parsing.taker(name, value)}; `iapo fields {name}`"
            " lists them"
        )
        raise ConfigError(f"config.{name} = {value!r}: {rule}")
      hint = parsing.suggestion(name)
      raise ConfigError(f"config.{name} = {value!r}: unknown field{hint}")
