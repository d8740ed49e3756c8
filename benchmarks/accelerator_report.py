"""What `accelerator.py` found, for people to read."""

from collections.abc import Iterator
from typing import Any

from iapo_jax.run import memory

_COLUMNS = (
    "seconds", "min", "max", "tokens/s", "of bandwidth", "of peak", "peak",
    "program",
)  # fmt: skip


def ratios(size: dict[str, Any]) -> dict[str, float]:
  """PyTorch's seconds over ours, of what both have done.

  Args:
    size: the figures of a size.

  Returns:
    `decoding_vs_torch`, `forward_vs_torch`, `update_vs_torch`,
    `step_vs_torch`, and our own `probes_over_forward`, those there are.
  """
  seconds = {
      name: {
          phase: entry["seconds"]
          for part in size.get(name, {}).values()
          for phase, entry in part["phases"].items()
      }
      for name in ("ours", "torch")
  }
  ours, theirs = seconds["ours"], seconds["torch"]
  generation = [v for k, v in theirs.items() if k.endswith("generation")]
  if generation:
    theirs["decoding"] = min(generation)
  if "scoring" in theirs:
    theirs["forward"] = theirs["scoring"]
  parts = ("decoding", "forward", "update")
  if all(part in theirs for part in parts):
    theirs["step"] = sum(theirs[part] for part in parts)
  found = {
      f"{phase}_vs_torch": theirs[phase] / ours[phase]
      for phase in (*parts, "step")
      if phase in theirs and phase in ours
  }
  for phase in ("probes", "strided_probes"):
    if phase in ours and "forward" in ours:
      found[f"{phase}_over_forward"] = ours[phase] / ours["forward"]
  return found


def head(summary: dict[str, Any]) -> Iterator[str]:
  """The device, its ceilings and the batch."""
  if "unmeasured" in summary:
    yield f"unmeasured: {summary['unmeasured']}"
  device, batch = summary["device"], summary["batch"]
  found = device["device"]
  yield (
      f"{found['kind']} ({found['platform']}),"
      f" {memory.readable(found['memory_bytes'])} to plan with"
  )
  yield (
      f"{batch['dtype']} products reach"
      f" {device['matmul_flops_per_second'] / 1e12:.2f} Tflop/s, memory"
      f" {device['bytes_per_second'] / 1e9:.0f} GB/s"
  )
  yield (
      f"{batch['sequences']} sequences of {batch['prompts']} prompts,"
      f" {batch['prompt_tokens']} + {batch['new_tokens']} tokens; strided"
      f" probes {batch['stride']} positions apart"
  )


def table(name: str, summary: dict[str, Any]) -> Iterator[str]:
  """A size's figures and ratios."""
  size = summary["sizes"][name]
  said = ", REHEARSAL: of no accelerator" if "unmeasured" in summary else ""
  yield f"{name}: {size['weights'] / 1e6:.2f} M weights{said}"
  yield f"{'':<25}" + "".join(f"{column:>14}" for column in _COLUMNS)
  for contestant in ("ours", "torch"):
    for part, found in size.get(contestant, {}).items():
      for phase, entry in found["phases"].items():
        cells = "".join(f"{cell:>14}" for cell in _cells(entry))
        yield f"{contestant:<6}{phase.replace('_', ' '):<19}{cells}"
      if not found["fits"]:
        yield f"{contestant:<6}{part.replace('_', ' '):<19}  {_why(found)}"
  yield ""
  for ratio, value in size["ratios"].items():
    yield f"{ratio:<29}{value:>8.2f}"


def _cells(entry: dict[str, Any]) -> list[str]:
  shares = ("share_of_bandwidth", "share_of_peak")
  sizes = ("peak_bytes", "program_bytes")
  return [
      *(f"{entry[k]:.4f}" for k in ("seconds", "min_seconds", "max_seconds")),
      f"{entry['tokens_per_second']:.0f}",
      *(f"{entry[k]:.1%}" if k in entry else "" for k in shares),
      *(memory.readable(entry[k]) if entry.get(k) else "" for k in sizes),
  ]


def _why(found: dict[str, Any]) -> str:
  """Why a part has no figures, or not all."""
  if "failed" in found:
    return f"failed: {found['failed'].strip().splitlines()[-1]}"
  if "out_of_memory" not in found:
    return f"does not fit: needs {memory.readable(found['needs_bytes'])}"
  planned = found.get("planned_bytes")
  told = f"; planned were {memory.readable(planned)}" if planned else ""
  return f"does not fit: no memory is left in {found['out_of_memory']}{told}"
