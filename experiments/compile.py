"""Compiles a configuration's train step for TPUs that are not there.

Examples:
  python experiments/compile.py --config=configs/qwen_math.py:7b \
      --topology=v5e:4x4 --json=7b.json
  python experiments/compile.py --config=configs/arithmetic.py:to_go \
      --topology=v5e:2x2

Needs `pip install 'jax[tpu]'` and no TPU; of a pretrained model the
configuration and the tokenizer, and neither weights nor data. Tells the memory
of each device, which is the compiler's own account; operations and reads by
arithmetic; what moves between devices, read from the program; and the seconds
below which no such chip can be.
"""

import pathlib
import time

import jax
from absl import flags
from ml_collections import config_flags

from iapo_jax.cli import command
from iapo_jax.core import files
from iapo_jax.run import assembly, plan
from iapo_jax.tools import ahead

config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with a variant after a colon."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:4x4.")
_SLICES = flags.DEFINE_integer(
    "slices", 1, "How many such slices; along mesh.data.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_PROGRAM = flags.DEFINE_string(
    "program", None, "File for the program, as the compiler writes it."
)
_LEVEL = flags.DEFINE_enum(
    "level", "UNKNOWN", ["UNKNOWN", "O0", "O1", "O2", "O3"],
    "Of the compiler's effort for a fast program; UNKNOWN as in a run, O0 to"
    " wait a third as long.",
)  # fmt: skip
flags.mark_flags_as_required(("config", "topology"))


def main(_: list[str]) -> None:
  """Compiles and tells."""
  jax.config.update("jax_platforms", "cpu")  # TPUs are described, not started
  cfg, _ = command.load_config()
  devices = ahead.devices(_TOPOLOGY.value, _SLICES.value)
  parts = assembly.assemble(cfg, devices, data=False)
  stage = assembly.reinforcement_stage(parts)
  print(plan.describe(parts.cfg, parts.mesh, stage.spec), flush=True)
  start = time.perf_counter()
  compiled = ahead.train_step(parts, stage, level=_LEVEL.value)
  seconds = time.perf_counter() - start
  chip = ahead.chips()[_TOPOLOGY.value.partition(":")[0]]
  found = ahead.report(parts, stage, compiled, chip)
  print(f"compiled   in {seconds:.0f} s")
  print("\n".join(ahead.lines(found)))
  if _PROGRAM.value:
    pathlib.Path(_PROGRAM.value).write_text(compiled.as_text(), "utf-8")
  if _JSON.value:
    told = {
        "topology": _TOPOLOGY.value,
        "slices": _SLICES.value,
        "level": _LEVEL.value,
        "compile_seconds": seconds,
    }
    files.write_json(pathlib.Path(_JSON.value), told | found)
  ahead.check_fits(found, parts, stage)


if __name__ == "__main__":
  command.run(main)
