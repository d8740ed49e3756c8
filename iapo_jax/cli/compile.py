"""Compiles a configuration's train step for TPUs that are not there.

  iapo compile --config=qwen_math:7b --topology=v5e:4x4 --json=7b.json
  iapo compile --config=arithmetic:to_go --topology=v5e:2x2

Needs `pip install 'jax[tpu]'` and no TPU; of a pretrained model the
configuration and the tokenizer, and neither weights nor data. Prints the memory
of each device, by the compiler's account; operations and reads, by arithmetic;
what moves between devices, read from the program; and the seconds that such
chips need at least.
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
  add("--topology", required=True, help="such as v5e:4x4")
  add(
      "--slices",
      default=1,
      type=command.at_least(1),
      help="how many such slices; along mesh.data",
  )
  add("--json", help="file for every figure")
  add("--program", help="file for the program, as the compiler writes it")
  add(
      "--level",
      default="UNKNOWN",
      choices=("UNKNOWN", "O0", "O1", "O2", "O3"),
      help="the compiler's effort for a fast program; UNKNOWN as in a run, O0"
      " waits a third as long",
  )


def run(given: argparse.Namespace) -> None:
  """Compiles and prints."""
  jax.config.update("jax_platforms", "cpu")  # TPUs are described, not started
  cfg, _ = configuration.load(given.config, given.overrides)
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
