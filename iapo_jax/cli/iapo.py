"""The command `iapo`: finds the command that the user names and runs it."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from absl import flags

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl.own import NOTHING, Own

# Each command is a file of this folder.
COMMANDS = {
    "train": "train a configuration",
    "evaluate": "evaluate policies on the same problems",
    "score": "show how much each token of reasoning reveals about the answer",
    "export": "write a policy as a Hugging Face folder",
    "report": "draw a page about one run or several",
    "compile": "compile a step for TPUs that you do not have",
    "replay": "repeat a step whose numbers were not finite",
    "demo": "train and compare methods on sums, in minutes",
    "fields": "list the fields of a configuration",
}

OF_OWN = ("train", "evaluate", "replay")  # commands that take own functions


def main() -> None:
  """Runs `iapo COMMAND ...`."""
  name, arguments = (sys.argv[1:] or ["--help"])[0], sys.argv[2:]
  if name in ("-h", "--help"):
    print(_usage())
    return
  run(name, arguments)


def run(
    name: str, arguments: Sequence[str] | None = None, own: Own = NOTHING
) -> None:
  """Runs one command to the end of the process; errors are one line.

  Args:
    name: one of `COMMANDS`.
    arguments: those after the command; by default the process's.
    own: the user's functions, for `train`, `evaluate` (which uses its grader)
      and `replay`.
  """
  with command.ending():
    if name not in COMMANDS:
      close = difflib.get_close_matches(name, COMMANDS, n=1)
      if name.startswith("--"):
        close = ["train"]
      hint = f"; did you mean `iapo {close[0]}`?" if close else ""
      rule = f"must be one of {', '.join(COMMANDS)}{hint}"
      raise ConfigError(f"command {name!r}: {rule}")
    if own.described and name not in OF_OWN:
      rule = f"own is for {', '.join(OF_OWN)}; leave it out"
      raise ConfigError(f"command {name!r}: {rule}")
    # Libraries read absl's own flags. The calling program may define others,
    # even required ones, which are not parsed here.
    flags.FLAGS.mark_as_parsed()
    module = importlib.import_module(f"iapo_jax.cli.{name}")
    parser = command.Parser(prog=f"iapo {name}", description=module.__doc__)
    module.add_arguments(parser)
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed, rest = parser.parse_known_args(given)
    takes_fields = hasattr(parsed, "config")
    if unknown := [x for x in rest if not (takes_fields and _is_field(x))]:
      parser.refuse(unknown)
    parsed.overrides, parsed.own = rest, own
    module.run(parsed)


def _is_field(argument: str) -> bool:
  """Returns whether an argument sets a field or is the value of one."""
  return not argument.startswith("--") or argument.startswith(
      ("--config.", "--noconfig.")
  )


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
  return "\n".join([
      "usage: iapo COMMAND ...", "", "commands:", *lines, "",
      "iapo COMMAND --help lists the arguments of a command.",
  ])  # fmt: skip
