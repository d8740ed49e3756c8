"""The figures of one accelerator: decoding, probing, updates, the whole step.

  python benchmarks/accelerator.py --json=accelerator.json
  python benchmarks/accelerator.py --sizes=0.5b --parts=sampling
  python benchmarks/accelerator.py --rehearsal       # on a CPU, tiny shapes

Random weights in the shapes of Qwen2.5, made on the device; bfloat16 products.
256 sequences (32 prompts of 256 tokens, 8 samples each) of 1024 tokens. Beside
it PyTorch, in a virtual environment made once from `peers/torch.txt`:
transformers' `generate` and a plain update of the same shapes (how: see
`peers/torch_worker.py`). Each part of each size is a process of its own, so
that memory is clean:

  sampling     decoding        with the prefill; of the bandwidth: the bytes
                               that it must read by arithmetic (weights once a
                               token, the cache so far) over its seconds
               forward         log-probabilities of all completions: the
                               yardstick of probing, and a reference policy's
               probes          early-exit probes at every position
               strided probes  at every `--stride`-th
  update       update          loss, gradient and AdamW, fp32 master weights
  step         step            a whole compiled GRPO step with a reference
  probed_step  probed step     the same of IAPO, probes at every `--stride`-th

Of the peak: the operations needed by arithmetic (`cases.py`) over the seconds,
as a share of what a large product reaches. Peak and bandwidth are measured in
the same run, by a process of its own at the start. Seconds are medians; the
first call of each program is warm-up. `peak` is the most memory that the device
had in use in that process so far, `program` the compiled program's own account
with its inputs. Ratios are the peer's seconds over ours: above 1, ours is
faster; the peer's step is the sum of its fastest generation, its scoring and
its update.

What does not fit on the device is told with what it needs, and the rest goes
on. Ours chooses micro-batches and rematerialisation by the library's account of
memory (`accelerator_worker.py`). What a rehearsal prints is not a figure of any
accelerator, and it says so.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import accelerator_report
import cases
import ceilings
import contest
import jax
import measuring
import workers
from absl import flags

from iapo_jax.cli import command
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import costs

_PARTS = ("sampling", "update", "step", "probed_step")
# Of PyTorch, the parts that go with ours.
_PEER_PARTS = {
    "sampling": ("generation", "static_generation", "scoring"),
    "update": ("update",),
}
_ATTEMPTS = 3
_REHEARSAL = (
    "a rehearsal on a CPU with tiny shapes: nothing here is a figure of an"
    " accelerator"
)

_REHEARSE = flags.DEFINE_bool(
    "rehearsal", False, "Tiny shapes on a CPU, to see that it runs."
)
_SIZES = flags.DEFINE_list("sizes", [], "Of the models; all by default.")
_WANTED = flags.DEFINE_list("parts", list(_PARTS), "Which parts to measure.")
_CONTESTANTS = flags.DEFINE_list(
    "contestants", ["ours", "torch"], "Who takes part."
)
_SEQUENCES = flags.DEFINE_integer(
    "sequences", None, "Of a batch; 256, or 8 in a rehearsal.", lower_bound=1
)
_GROUP = flags.DEFINE_integer(
    "group", None, "Samples of a prompt; 8, or 4 in a rehearsal.", lower_bound=2
)
_PROMPT = flags.DEFINE_integer(
    "prompt_tokens", None, "256, or 8 in a rehearsal.", lower_bound=1
)
_NEW = flags.DEFINE_integer(
    "new_tokens", None, "1024, or 16 in a rehearsal.", lower_bound=1
)
_STRIDE = flags.DEFINE_integer(
    "stride", None, "Between probes; 16, or 4 in a rehearsal.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ("bfloat16", "float32"), "Of products and cache."
)
_ATTENTION = flags.DEFINE_enum(
    "attention",
    "auto",
    ["auto", "reference", "fused"],
    "Ours; fused needs kernels.",
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 3, "Timed calls of everything; fewer of slow ones.", lower_bound=1
)
_GIGABYTES = flags.DEFINE_float(
    "gigabytes", None, "To plan with; by default all memory.", lower_bound=0
)
_JSON = flags.DEFINE_string("json", None, "File for every figure.")
_ENVS = flags.DEFINE_string(
    "envs",
    "~/.cache/iapo_jax/benchmarks",
    "Folder that keeps the peer's virtual environment.",
)


def cases_of() -> dict[str, cases.Case]:
  """The cases asked for.

  Raises:
    ConfigError: for a size that there is not, or a batch of broken groups.
  """
  small = _REHEARSE.value
  models = cases.rehearsed() if small else cases.published()
  names = _SIZES.value or list(models)
  for flag, given, known in (
      ("sizes", names, models), ("parts", _WANTED.value, _PARTS)
  ):  # fmt: skip
    unknown = [name for name in given if name not in known]
    if unknown or not given:
      rule = f"must be of {', '.join(known)}"
      raise ConfigError(f"--{flag} {','.join(unknown)!r}: {rule}")
  sequences = _SEQUENCES.value or (8 if small else 256)
  group = _GROUP.value or (4 if small else 8)
  if sequences % group:
    rule = f"must be a multiple of --group = {group}"
    raise ConfigError(f"--sequences {sequences}: {rule}")
  return {
      name: cases.Case(
          models[name],
          prompts=sequences // group,
          group=group,
          prompt_tokens=_PROMPT.value or (8 if small else 256),
          new_tokens=_NEW.value or (16 if small else 1024),
          rehearsal=small,
      )
      for name in names
  }


def stride() -> int:
  """Between the probes that are not at every position."""
  return _STRIDE.value or (4 if _REHEARSE.value else 16)


def job_of(case: cases.Case, folder: pathlib.Path) -> dict[str, Any]:
  """What workers are told, but for the part; config.json lies in the folder."""
  small = _REHEARSE.value
  cases.write_config(case, folder, _DTYPE.value)
  return cases.job_of(case, steps=1) | {
      "model": dataclasses.asdict(case.model),
      "config": str(folder),
      "dtype": _DTYPE.value,
      "attention": _ATTENTION.value,
      "stride": stride(),
      "rounds": _ROUNDS.value,
      "memory_bytes": int(1e9 * (_GIGABYTES.value or 0)),
      "matmul_sizes": (
          ceilings.REHEARSAL_SIZES if small else (4096, 8192, 16_384)
      ),
      "bandwidth_bytes": 2**26 if small else 2**32,
  }


def ask(
    name: str, python: pathlib.Path, job: dict[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
  """The answer of a worker that has the job to do.

  Args:
    name: of the contestant.
    python: its interpreter.
    job: with its part.
    folder: for the job and the worker's log.

  Returns:
    What it measured; `failed` with its last words where it ended before.
  """
  path = folder / "job.json"
  path.write_text(json.dumps(job), encoding="utf-8")
  script = "accelerator_worker.py"
  variables = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
  if name != "ours":
    script, variables = f"peers/{name}_worker.py", {}
  if job["rehearsal"]:
    variables["JAX_PLATFORMS"] = "cpu"
  print(f"{name}: {job['part']}", file=sys.stderr)
  try:
    worker = workers.Worker(name, python, path, script=script, **variables)
  except RuntimeError as error:
    return {"fits": False, "failed": str(error), "phases": {}}
  worker.close()
  return worker.facts


def ours_part(
    part: str, job: dict[str, Any], python: pathlib.Path, folder: pathlib.Path
) -> dict[str, Any]:
  """Our figures of a part, in settings that have room if there are any."""
  found: dict[str, Any] = {"phases": {}}
  for attempt in range(_ATTEMPTS):
    asked = job | {"part": part, "attempt": attempt}
    answer = ask("ours", python, asked, folder)
    if attempt and "needs_bytes" in answer:
      break  # nothing smaller is left to try
    # Phases that an attempt before had room for stay.
    phases = found["phases"] | answer.get("phases", {})
    found = answer | {"phases": phases, "attempts": attempt + 1}
    if "out_of_memory" not in answer:
      break
  return found


def peer_part(
    part: str,
    job: dict[str, Any],
    python: pathlib.Path,
    folder: pathlib.Path,
    case: cases.Case,
) -> dict[str, Any]:
  """PyTorch's figures of a part; where it cannot fit it is not started."""
  needs, most = peer_bytes(part, case), job["device_bytes"]
  if needs > most:
    return {"fits": False, "needs_bytes": needs, "phases": {}}
  found = ask("torch", python, job | {"part": part}, folder)
  phases = found.pop("phases")
  done = {k: v for k, v in phases.items() if "out_of_memory" not in v}
  fits = bool(done) and "failed" not in found
  # Generation with either cache is one phase of the worker.
  done = {part: next(iter(done.values()))} if done else {}
  more = {} if fits or "failed" in found else {"out_of_memory": part}
  return found | more | {"fits": fits, "phases": done}


def peer_bytes(part: str, case: cases.Case) -> int:
  """The least that PyTorch needs: weights, and moments or the cache."""
  width, m = (2 if _DTYPE.value == "bfloat16" else 4), case.model
  if part == "update":
    return 16 * cases.size(m)  # weights, gradients, two moments
  length = case.prompt_tokens + case.new_tokens
  slots = 0 if part == "scoring" else case.sequences * length
  cache = 2 * slots * m.num_layers * m.num_kv_heads * m.head_dim
  return width * (cases.size(m) + cache)


def checked(
    name: str, found: dict[str, Any], case: cases.Case
) -> dict[str, Any]:
  """The figures; none where something else was done than was asked for."""
  counted = found.get("found", {})
  try:
    if "tokens" in counted:
      workers.check(name, counted, cases.expected(case))
    if "loss" in counted:
      workers.check_learning(name, counted)
  except RuntimeError as error:
    return {"fits": False, "failed": str(error), "phases": {}}
  return found


def measure(
    case: cases.Case,
    device: dict[str, Any],
    pythons: dict[str, pathlib.Path],
    folder: pathlib.Path,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Runs all parts of a size.

  Args:
    case: of the size.
    device: with its ceilings, as the worker told them.
    pythons: of the contestants.
    folder: for jobs and logs.

  Yields:
    Contestant, part and its figures, as soon as they are there.
  """
  job = job_of(case, folder)
  job["device_bytes"] = device["device"]["memory_bytes"]
  for part in _WANTED.value:
    if "ours" in pythons:
      found = ours_part(part, job, pythons["ours"], folder)
      found = checked("ours", found, case)
      yield "ours", part, rated(found, case, device)
    if "torch" in pythons:
      for theirs in _PEER_PARTS.get(part, ()):
        found = peer_part(theirs, job, pythons["torch"], folder, case)
        found = checked("torch", found, case)
        yield "torch", theirs, rated(found, case, device)


def rated(
    found: dict[str, Any], case: cases.Case, device: dict[str, Any]
) -> dict[str, Any]:
  """A part's figures, every phase held against what the device reaches."""
  width = 2 if _DTYPE.value == "bfloat16" else 4
  probing = costs.probe_flops(case, stride(), contest.ELICITATION)
  forward, whole = costs.pass_flops(case), costs.step_flops(case)
  work = {
      "forward": forward,
      "scoring": forward,
      "probes": costs.probe_flops(case, 1, contest.ELICITATION),
      "strided_probes": probing,
      "update": 3 * forward,
      "step": whole,
      "probed_step": whole + probing,
  }
  for phase, entry in found["phases"].items():
    seconds = entry["seconds"]
    entry["tokens_per_second"] = case.tokens / seconds
    if phase in work:
      entry["flops"] = work[phase]
      rate = work[phase] / seconds
      entry["share_of_peak"] = rate / device["matmul_flops_per_second"]
    else:
      weights = costs.weight_reads(case, width)
      entry["bytes"] = weights + costs.cache_reads(case, width)
      rate = entry["bytes"] / seconds
      entry["share_of_bandwidth"] = rate / device["bytes_per_second"]
  return found


def device_facts(
    case: cases.Case, folder: pathlib.Path
) -> dict[str, Any]:
  """The device and its ceilings.

  Raises:
    ConfigError: where there is no accelerator, and this is no rehearsal.
  """
  job = job_of(case, folder) | {"part": "device"}
  found = ask("ours", pathlib.Path(sys.executable), job, folder)
  if "failed" in found:
    raise RuntimeError(found["failed"])
  if found["device"]["platform"] == "cpu" and not _REHEARSE.value:
    raise ConfigError("JAX finds no accelerator; --rehearsal needs none")
  return found


def main(_: list[str]) -> None:
  """Measures the sizes, prints their tables."""
  workers.check_names(_CONTESTANTS.value, ("torch",))
  wanted = cases_of()
  pythons = workers.pythons(_CONTESTANTS.value, _ENVS.value)
  jax.config.update("jax_platforms", "cpu")  # the device is the workers'
  first = next(iter(wanted.values()))
  summary = {
      "rehearsal": _REHEARSE.value,
      "batch": {
          "sequences": first.sequences,
          "prompts": first.prompts,
          "prompt_tokens": first.prompt_tokens,
          "new_tokens": first.new_tokens,
          "stride": stride(),
          "dtype": _DTYPE.value,
          "attention": _ATTENTION.value,
      },
      "sizes": {},
  }
  if _REHEARSE.value:
    summary = {"unmeasured": _REHEARSAL} | summary
  with tempfile.TemporaryDirectory() as place:
    measure_all(summary, wanted, pythons, pathlib.Path(place))


def measure_all(
    summary: dict[str, Any],
    wanted: dict[str, cases.Case],
    pythons: dict[str, pathlib.Path],
    folder: pathlib.Path,
) -> None:
  """Fills, prints and writes the summary, size by size.

  Args:
    summary: what is known of the run.
    wanted: the case of each size.
    pythons: of the contestants.
    folder: for jobs and logs.
  """
  first = next(iter(wanted.values()))
  summary["device"] = device = device_facts(first, folder)
  print("\n".join(accelerator_report.head(summary)), end="\n\n")
  for name, case in wanted.items():
    size = {"weights": cases.size(case.model), "ratios": {}}
    summary["sizes"][name] = size
    for who, part, found in measure(case, device, pythons, folder):
      size.setdefault(who, {})[part] = found
      size["ratios"] = accelerator_report.ratios(size)
      # A long run may be interrupted.
      measuring.write_json(_JSON.value, summary)
    print("\n".join(accelerator_report.table(name, summary)), end="\n\n")


if __name__ == "__main__":
  command.run(main)
