"""What a step needs on 16 to 256 chips, from programs compiled without them.

  python benchmarks/scaling.py --json=scaling.json
  python benchmarks/scaling.py --json=scaling.json --cells=7b@v5e:4x4
  python benchmarks/scaling.py --json=scaling.json --tables   # compiles nothing

Each cell is a model, a topology, a mesh and a batch, compiled by
`experiments/compile.py` in a process of its own, one at a time: prompts of 512
tokens, 8 completions of 2,048 each, probes at every position, answers graded on
the host. Models that think have the lengths, the probes and the attention of
`configs/thinking_math.py`. Models are shapes of `cases.published` in folders
without weights, with a tokenizer of bytes. Cells that the file has as they are
here are not compiled again.

Needs `pip install 'jax[tpu]'` and no TPU. A cell takes one to two
minutes on two cores.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import cases
from absl import flags

from iapo_jax.cli import command
from iapo_jax.core import files, markdown
from iapo_jax.core.errors import ConfigError

_ROOT = pathlib.Path(__file__).parent.parent
_PHASES = ("rollout", "probes", "reference", "update")

_JSON = flags.DEFINE_string("json", None, "File of all cells; it is added to.")
_CELLS = flags.DEFINE_list("cells", [], "Only these, such as 7b@v5e:4x4.")
_LEVEL = flags.DEFINE_string(
    "level", "O0", "As of experiments/compile.py; UNKNOWN is what a run gets."
)
_TABLES = flags.DEFINE_bool("tables", False, "Only print what the file has.")
flags.mark_flag_as_required("json")


@dataclasses.dataclass(frozen=True)
class Cell:
  """One program.

  Attributes:
    model: of `cases.published`.
    topology: as libtpu names it.
    data: shards of the batch alone.
    fsdp: shards of batch and weights.
    tensor: shards of heads, MLP and vocabulary.
    prompts: of a step.
    micro_batches: of an update from full completions.
    slices: of the topology, along `data`.
  """

  model: str
  topology: str
  data: int
  fsdp: int
  tensor: int
  prompts: int
  micro_batches: int
  slices: int = 1

  @property
  def name(self) -> str:
    """By which it is asked for: 7b@v5e:4x4, 7b@2*v5e:16x16."""
    times = f"{self.slices}*" if self.slices > 1 else ""
    return f"{self.model}@{times}{self.topology}"


def cells() -> list[Cell]:
  """All of them, those first that a reader asks for first."""
  return [
      Cell("7b", "v5e:4x4", 1, 4, 4, 16, 16),
      Cell("0.5b", "v5e:4x4", 1, 16, 1, 16, 2),
      Cell("1.5b", "v5e:4x4", 1, 16, 1, 16, 8),
      Cell("0.5b", "v5p:4x4x4", 4, 16, 1, 64, 1),
      Cell("1.5b", "v5p:4x4x4", 4, 16, 1, 64, 1),
      Cell("qwen3_0.6b", "v5e:4x4", 1, 8, 2, 8, 8),
      Cell("r1_1.5b", "v5e:4x4", 1, 16, 1, 16, 8),
      Cell("qwen3_4b", "v5e:4x4", 1, 4, 4, 4, 8),
      Cell("r1_7b", "v5e:4x4", 1, 4, 4, 4, 8),
      Cell("7b", "v5p:4x4x4", 1, 64, 1, 64, 2),
      Cell("0.5b", "v6e:8x8", 4, 16, 1, 64, 2),
      Cell("1.5b", "v6e:8x8", 4, 16, 1, 64, 4),
      Cell("7b", "v6e:8x8", 1, 16, 4, 64, 8),
      Cell("32b", "v5p:4x4x4", 1, 8, 8, 64, 16),
      Cell("32b", "v5e:16x16", 1, 32, 8, 32, 8),
      Cell("32b", "v6e:8x8", 1, 8, 8, 32, 32),
      Cell("7b", "v5e:16x16", 8, 16, 4, 512, 16, slices=2),
      Cell("7b", "v5e:8x8", 1, 16, 4, 64, 16),
      Cell("7b", "v5e:16x16", 4, 16, 4, 256, 16),
      Cell("0.5b", "v5e:16x16", 16, 16, 1, 256, 2),
      Cell("7b", "v5p:2x2x4", 1, 16, 1, 16, 2),
      Cell("32b", "v5p:2x2x4", 1, 2, 8, 16, 32),
      Cell("32b", "v5p:4x8x8", 4, 8, 8, 256, 16),
      Cell("7b", "v5p:4x8x8", 4, 64, 1, 256, 2),
      Cell("7b", "v6e:4x4", 1, 4, 4, 16, 8),
      Cell("7b", "v6e:16x16", 4, 16, 4, 256, 8),
      Cell("32b", "v6e:16x16", 1, 32, 8, 128, 16),
  ]


def main(_: list[str]) -> None:
  """Compiles what is missing, and prints the table."""
  path = pathlib.Path(_JSON.value)
  known = files.read_json(path) if path.exists() else {}
  chosen = [x for x in cells() if not _CELLS.value or x.name in _CELLS.value]
  if unknown := set(_CELLS.value) - {x.name for x in chosen}:
    names = ", ".join(x.name for x in cells())
    raise ConfigError(f"--cells {','.join(unknown)!r}: must be of {names}")
  if not _TABLES.value:
    with tempfile.TemporaryDirectory() as folder:
      for cell in chosen:
        done = known.get(cell.name, {}).get("cell")
        if done != dataclasses.asdict(cell):
          known[cell.name] = compile_cell(cell, pathlib.Path(folder))
          files.write_json(path, known)
          print(" ".join(row(known[cell.name])), flush=True)
  print(tables([known[x.name] for x in chosen if x.name in known]))


def compile_cell(cell: Cell, folder: pathlib.Path) -> dict[str, Any]:
  """What the compiler says of a cell, or why it does not fit.

  Args:
    cell: to compile.
    folder: for the model's shape.

  Returns:
    The report of `experiments/compile.py` beside the cell, or an `error`.
  """
  shape = folder / cell.model
  if not shape.exists():
    shape.mkdir()
    cases.write_shape(cases.published()[cell.model], shape)
  report = folder / "report.json"
  report.unlink(missing_ok=True)
  done = subprocess.run(
      arguments_of(cell, shape, report),
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  found = {"cell": dataclasses.asdict(cell)}
  if report.exists():
    return found | json.loads(report.read_text(encoding="utf-8"))
  last = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  if not last:
    raise RuntimeError(f"{cell.name}: {done.stderr[-2000:]}")
  return found | {"error": last[-1].removeprefix("error: ")}


def arguments_of(
    cell: Cell, shape: pathlib.Path, report: pathlib.Path
) -> list[str]:
  """What compiles a cell.

  Args:
    cell: to compile.
    shape: the model's folder.
    report: file for the figures.

  Returns:
    A command, its first word this Python.
  """
  shards = cell.data * cell.fsdp
  fields = {
      "model.pretrained": shape,
      "mesh.data": cell.data,
      "mesh.fsdp": cell.fsdp,
      "mesh.tensor": cell.tensor,
      "prompts_per_step": cell.prompts,
      "loss.micro_batches": cell.micro_batches,
      "evaluation.batch_size": 32 * shards,
  }
  # 32b is no size of the recipe; the folder decides.
  size = cell.model if cell.model in ("0.5b", "1.5b") else "7b"
  recipe = f"qwen_math.py:{size}"
  if cell.model.startswith(("qwen3", "r1")):
    recipe = f"thinking_math.py:{cell.model}"
  else:
    fields["model.attention"] = "fused"
  return [
      sys.executable,
      "experiments/compile.py",
      f"--config=configs/{recipe}-gsm8k-to_go",
      f"--topology={cell.topology}",
      f"--slices={cell.slices}",
      f"--json={report}",
      f"--level={_LEVEL.value}",
      *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


def tables(found: list[dict[str, Any]]) -> str:
  """Markdown: what fits and what bounds it; what it computes and moves.

  Args:
    found: of `compile_cell`.

  Returns:
    Both tables.
  """
  of_cell = ("cell", "mesh", "batch")
  fit = ("compiled, s", "held, GB", "peak, GB", "of, GB")
  fitting = [x for x in found if "error" not in x]
  seconds = [f"{phase}, s" for phase in _PHASES]
  return "\n\n".join((
      markdown.table((*of_cell, *fit, *seconds), map(row, found)),
      markdown.table((*of_cell, *_PHASES), map(amounts, fitting)),
  ))


def _of_cell(found: dict[str, Any]) -> list[str]:
  cell = Cell(**found["cell"])
  return [
      cell.name,
      f"{cell.data} × {cell.fsdp} × {cell.tensor}",
      f"{cell.prompts} / {cell.micro_batches}",
  ]


def row(found: dict[str, Any]) -> list[str]:
  """Memory of a device, and by phase the seconds at least and their reason."""
  columns = _of_cell(found)
  if "error" in found:
    return [*columns, found["error"]]
  held = found["memory"]
  columns.append(f"{found['compile_seconds']:.0f}")
  for name in ("argument_bytes", "peak_bytes"):
    columns.append(f"{held[name] / 1e9:.1f}")
  columns.append(f"{held['device_bytes'] / 1e9:.0f}")
  for phase in _PHASES:
    bounds = found["roofline_seconds"][phase]
    worst = max(bounds, key=bounds.get)
    columns.append(f"{bounds[worst]:.3g} {worst}")
  return columns


def amounts(found: dict[str, Any]) -> list[str]:
  """By phase, of a device: Tflop, GB read, GB sent inside its slice and out."""
  columns = _of_cell(found)
  for phase in _PHASES:
    flops = found["flops"][phase] / 1e12
    moved = [
        found[name][phase] / 1e9
        for name in ("read_bytes", "collective_bytes", "network_bytes")
    ]
    if found["cell"]["slices"] == 1:
      moved.pop()
    columns.append(" / ".join(f"{round(x, 3):.3g}" for x in (flops, *moved)))
  return columns


if __name__ == "__main__":
  command.run(main)
