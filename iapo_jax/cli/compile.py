"""Compiles a configuration's train step for TPUs that you do not have.

  iapo compile --config=qwen_math:7b --topology=v5e:4x4 --json=7b.json
  iapo compile --config=arithmetic:to_go --topology=v5e:2x2

Needs `pip install 'jax[tpu]'` but no TPU. A pretrained model needs only its
configuration and tokenizer, not its weights; data are not read. Prints for each
device: the memory, as the compiler reports it; operations and bytes read, by
arithmetic; bytes sent, read from the program; and a lower bound of the seconds.
"""

import argparse
import pathlib
import time

import jax

from iapo_jax.cli import command, configuration
from iapo_jax.core import files
from iapo_jax.run import assembly, plan
from iapo_jax.tools import ahead


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  configuration.add_argument(parser)
  add = parser.add_argument
  add("--topology", required=True, help="chips of a slice, such as v5e:4x4")
  add(
      "--slices",
      default=1,
      type=command.at_least(1),
      help="number of slices, along mesh.data",
  )
  add("--json", help="file to write all numbers to")
  add("--program", help="file to write the compiled program to")
  add(
      "--level",
      default="UNKNOWN",
      choices=("UNKNOWN", "O0", "O1", "O2", "O3"),
      help="the compiler's optimization level; UNKNOWN is that of a run, O0"
      " compiles in a third of the time",
  )


def run(given: argparse.Namespace) -> None:
  """Compiles the step and prints its costs."""
  jax.config.update("jax_platforms", "cpu")  # describes TPUs, starts none
  cfg, _ = configuration.load(given.config, given.overrides)
  for flag in ("json", "program"):  # before the minutes of compiling
    if path := getattr(given, flag):
      files.make_place(flag, pathlib.Path(path))
  devices = ahead.devices(given.topology, given.slices)
  parts = assembly.assemble(cfg, devices, data=False)
  stage = assembly.reinforcement_stage(parts)
  print(plan.describe(parts.cfg, parts.mesh, stage.spec), flush=True)
  start = time.perf_counter()
  compiled = ahead.train_step(parts, stage, level=given.level)
  seconds = time.perf_counter() - start
  chip = ahead.chips()[given.topology.partition(":")[0]]
  found = ahead.report(parts, stage, compiled, chip)
  print(f"compiled   in {seconds:.0f} s")
  print("\n".join(ahead.lines(found)))
  if given.program:
    pathlib.Path(given.program).write_text(compiled.as_text(), "utf-8")
  if given.json:
    settings = {
        "topology": given.topology,
        "slices": given.slices,
        "level": given.level,
        "compile_seconds": seconds,
    }
    files.write_json(pathlib.Path(given.json), settings | found)
  ahead.check_fits(found, parts, stage)
