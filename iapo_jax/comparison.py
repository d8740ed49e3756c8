"""Policies of several runs on the same problems, timed side by side."""

import csv
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from iapo_jax import assembly, checkpoint, evaluation, trainer
from iapo_jax import workdir as workdir_lib
from iapo_jax.assembly import Assembly
from iapo_jax.errors import ConfigError
from iapo_jax.evaluation import Completions
from iapo_jax.types import KeyDomain, Params

SPLITS = ("train", "validation", "test")
SECONDS = "seconds_per_completion"


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A policy that is judged.

  Attributes:
    name: of its run.
    checkpoint: stage/step.
    parts: of its run, with the evaluation's settings.
    sampler: compiled; shared by runs that sample alike.
    params: fp32 weights.
  """

  name: str
  checkpoint: str
  parts: Assembly
  sampler: evaluation.Sampler
  params: Params


def load(
    workdirs: Sequence[pathlib.Path], which: str, **settings: Any
) -> list[Contestant]:
  """Policies of runs.

  Args:
    workdirs: of the runs.
    which: `last`, `best` (`evaluation.best_step`; the last of a run without
      reinforcement learning) or a step of its reinforcement learning.
    **settings: fields of `config.evaluation` that replace those of the runs;
      None leaves one as it is.

  Returns:
    The contestants.

  Raises:
    ConfigError: for a missing or damaged checkpoint, or a broken rule.
  """
  shared: dict[Any, tuple[Assembly, evaluation.Sampler]] = {}
  contestants = []
  for workdir in workdirs:
    cfg = workdir_lib.load_config(workdir)
    given = {k: v for k, v in settings.items() if v is not None}
    changed = dataclasses.replace(cfg.evaluation, **given)
    cfg = workdir_lib.checked(dataclasses.replace(cfg, evaluation=changed))
    # All that shapes the sampler and its data: such runs share one program.
    alike = (
        cfg.model, cfg.mesh, cfg.data, cfg.rollout, cfg.reward.grader,
        cfg.probe.elicitation, cfg.evaluation,
    )  # fmt: skip
    if alike not in shared:
      parts = assembly.assemble(cfg)
      stage = assembly.reinforcement_stage(parts)
      shared[alike] = parts, assembly.sampler_of(parts, stage)
    parts, sampler = shared[alike]
    stage, step = _where(workdir, which)
    params = trainer.load_policy(parts, workdir, (stage, step))
    name = f"{stage}/{step}"
    contestants.append(Contestant(str(workdir), name, parts, sampler, params))
  _check_alike(contestants)
  return contestants


def _check_alike(contestants: Sequence[Contestant]) -> None:
  """Whether the contestants can be judged side by side."""
  first, *others = (c.parts for c in contestants)
  for other in others:
    for field in ("samples", "batch_size"):
      ours, theirs = (
          getattr(parts.cfg.evaluation, field) for parts in (first, other)
      )
      if ours != theirs:
        raise ConfigError(
            f"config.evaluation.{field}: the runs have {ours} and {theirs};"
            f" give one with --{field}"
        )
    for split in SPLITS:
      tables = (parts.task.tables[split].prompts for parts in (first, other))
      leaves = zip(*map(jax.tree.leaves, tables), strict=True)
      if not all(np.array_equal(a, b) for a, b in leaves):
        raise ConfigError(f"the runs differ in their {split} problems")


def _where(workdir: pathlib.Path, which: str) -> tuple[str, int]:
  last = checkpoint.last(workdir)
  if which == "last" or (which == "best" and last[0] != "rl"):
    return last
  if which == "best":
    return "rl", trainer.best_checkpoint(workdir)
  kept = checkpoint.steps(checkpoint.stage_folder(workdir, "rl"))
  if not which.isdecimal() or int(which) not in kept:
    raise ConfigError(
        f"--checkpoint = {which!r}: must be last, best or a kept step of"
        f" {str(workdir)!r}, which are {kept}"
    )
  return "rl", int(which)


def judge(
    contestants: Sequence[Contestant],
    *,
    split: str,
    problems: int,
    seeds: Sequence[int],
) -> list[list[dict[str, float]]]:
  """Samples every contestant on the same problems with the same keys.

  Calls are interleaved, contestant by contestant, so that a busy machine slows
  all of them alike; each program runs once before anything is timed.

  Args:
    contestants: to judge.
    split: of their data.
    problems: the first so many; all where there are fewer.
    seeds: of sampling.

  Returns:
    For every contestant and seed the metrics of `evaluation.summarise` and
    `seconds_per_completion`: the median time of a call over the completions in
    it.
  """
  everything: list[list[dict[str, float]]] = [[] for _ in contestants]
  _warm_up(contestants, split)
  for seed in tqdm.tqdm(seeds, desc="sampling seeds"):
    key = KeyDomain.EVALUATION.key(seed)
    calls: list[list[Completions]] = [[] for _ in contestants]
    seconds: list[list[float]] = [[] for _ in contestants]
    streams = [_batches(c, split, problems) for c in contestants]
    for number, round_ in enumerate(zip(*streams, strict=True)):
      call_key = jax.random.fold_in(key, number)
      for i, (prompts, count) in enumerate(round_):
        start = time.perf_counter()
        results = contestants[i].sampler(
            contestants[i].params, prompts, call_key
        )
        calls[i].append(evaluation.counted(results, count))
        seconds[i].append(time.perf_counter() - start)
    for i, contestant in enumerate(contestants):
      size = contestant.parts.cfg.evaluation.batch_size
      everything[i].append(
          evaluation.summarise(evaluation.concatenate(calls[i]))
          | {"seed": seed, SECONDS: statistics.median(seconds[i]) / size}
      )
  return everything


def _batches(contestant: Contestant, split: str, problems: int) -> Any:
  parts = contestant.parts
  settings = parts.cfg.evaluation
  return evaluation.batches(
      parts.task.tables[split],
      parts.mesh,
      problems=problems,
      batch_prompts=settings.batch_size // settings.samples,
  )


def _warm_up(contestants: Sequence[Contestant], split: str) -> None:
  """Compiles, and lets every contestant run once."""
  for contestant in contestants:
    prompts, _ = next(_batches(contestant, split, 1))
    key = KeyDomain.EVALUATION.key(0)
    jax.block_until_ready(
        contestant.sampler(contestant.params, prompts, key)
    )


def report(
    contestants: Sequence[Contestant],
    results: Sequence[Sequence[dict[str, float]]],
    split: str,
) -> list[dict[str, Any]]:
  """Every contestant's metrics, by seed and over the seeds.

  Args:
    contestants: that were judged.
    results: of `judge`.
    split: they were judged on.

  Returns:
    JSON-ready records: `run`, `checkpoint`, `split`, `batch_size`,
    `temperature`, `seeds`, and of every metric the `mean` and, over several
    seeds, the standard deviation `std` (ddof 1).
  """
  records = []
  for contestant, runs in zip(contestants, results, strict=True):
    names = [name for name in runs[0] if name != "seed"]
    columns = {name: [run[name] for run in runs] for name in names}
    record = {
        "run": contestant.name,
        "checkpoint": contestant.checkpoint,
        "split": split,
        "batch_size": contestant.parts.cfg.evaluation.batch_size,
        "temperature": contestant.parts.cfg.evaluation.temperature,
        "seeds": list(runs),
        "mean": {k: statistics.mean(v) for k, v in columns.items()},
    }
    if len(runs) > 1:
      record["std"] = {k: statistics.stdev(v) for k, v in columns.items()}
    records.append(record)
  return records


def write(records: Sequence[dict[str, Any]], stem: pathlib.Path) -> None:
  """STEM.json with everything, and STEM.csv with a row per run and seed.

  Args:
    records: of `report`.
    stem: of both files.
  """
  stem.parent.mkdir(parents=True, exist_ok=True)
  as_json, as_csv = files(stem)
  workdir_lib.write_json(as_json, {"runs": list(records)})
  shared = ["run", "checkpoint", "split", "batch_size", "temperature"]
  # Runs may differ in their samples, and so in the k of pass@k.
  metrics = list(
      dict.fromkeys(k for r in records for seed in r["seeds"] for k in seed)
  )
  with as_csv.open("w", newline="", encoding="utf-8") as f:
    writer = csv.DictWriter(f, [*shared, *metrics], restval="")
    writer.writeheader()
    for record in records:
      base = {name: record[name] for name in shared}
      writer.writerows(base | seed for seed in record["seeds"])


def files(stem: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """The JSON and the CSV file of a stem.

  Args:
    stem: of both.

  Returns:
    Their paths.

  Raises:
    ConfigError: for a stem without a name.
  """
  if not stem.name:
    raise ConfigError(f"--output = {str(stem)!r}: must end in a file name")
  return tuple(stem.with_name(stem.name + end) for end in (".json", ".csv"))


def table(records: Sequence[dict[str, Any]]) -> str:
  """The most asked-for numbers as Markdown; ± is over sampling seeds."""
  k = evaluation.powers_of_two(int(records[0]["mean"]["samples"]))[-1]
  head = ["run", "accuracy", f"pass@{k}", f"length@{k}", f"efficiency@{k}"]
  head += ["reasoning", "format", "ms per completion"]
  lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
  for record in records:
    cells = [
        f"{record['run']} {record['checkpoint']}",
        _cell(record, "accuracy", 1, ".3f"),
        _cell(record, f"pass@{k}", 1, ".3f"),
        _cell(record, f"length@{k}", 1, ".1f"),
        _cell(record, f"efficiency@{k}", 1, ".4f"),
        _cell(record, "mean_reasoning_tokens", 1, ".1f"),
        _cell(record, "format_rate", 1, ".3f"),
        _cell(record, SECONDS, 1e3, ".3f"),
    ]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _cell(
    record: dict[str, Any], name: str, scale: float, style: str
) -> str:
  text = format(scale * record["mean"][name], style)
  if "std" in record:
    text += f" ± {format(scale * record['std'][name], style)}"
  return text


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records that `write` wrote.

  Args:
    path: of the JSON file.

  Returns:
    The records.

  Raises:
    ConfigError: where it was not written by `write`.
  """
  records = workdir_lib.read_json(path).get("runs")
  needed = {"run", "checkpoint", "batch_size", "mean"}
  if not isinstance(records, list) or not all(
      isinstance(r, dict) and needed <= r.keys() and SECONDS in r["mean"]
      for r in records
  ):
    raise ConfigError(f"{str(path)!r}: was not written by evaluate.py")
  return records
