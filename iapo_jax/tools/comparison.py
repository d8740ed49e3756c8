"""Evaluates policies of several runs on the same problems, side by side."""

import csv
import dataclasses
import io
import math
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm

from iapo_jax.config import parsing as config_lib
from iapo_jax.config import rules
from iapo_jax.config.data import ArithmeticConfig
from iapo_jax.config.gym import GymConfig
from iapo_jax.config.schema import MeshConfig
from iapo_jax.core import files, markdown, processes
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import KeyDomain, Params
from iapo_jax.hf import folder
from iapo_jax.rewards.reward import name_of
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.run import assembly, evaluation, sources
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.run.assembly import Assembly
from iapo_jax.run.evaluation import Completions

SPLITS = ("train", "validation", "test")
_GOLD_TOKENS = 64  # enough for every published answer
SECONDS = "seconds_per_completion"
# Fields by which completions are sampled: results compare only if they agree.
SAMPLED_BY = (
    *(f"evaluation.{name}" for name in evaluation.SAMPLING),
    "rollout.max_tokens",
)


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A policy to evaluate.

  Attributes:
    name: folder of its run.
    checkpoint: stage/step.
    parts: of its run, with the settings of this evaluation.
    sampler: compiled; shared by runs that sample alike.
    params: fp32 weights.
  """

  name: str
  checkpoint: str
  parts: Assembly
  sampler: evaluation.Sampler
  params: Params


def load(
    workdirs: Sequence[pathlib.Path],
    which: str,
    *,
    max_tokens: int | None = None,
    data: Mapping[str, Any] | None = None,
    own: Own = NOTHING,
    **settings: Any,
) -> list[Contestant]:
  """Loads policies of runs.

  Args:
    workdirs: folders of the runs.
    which: `last`, `best` (`evaluation.best_step`; the last of a run without
      reinforcement learning) or a step of its reinforcement learning.
    max_tokens: replaces `config.rollout.max_tokens`.
    data: replaces fields of `config.data`; a field that is None keeps the run's
      value. Another `task` means its published problems.
    own: its `text_grader` grades; warns of runs that had another one.
    **settings: replace fields of `config.evaluation`; None keeps the run's
      value.

  Raises:
    ConfigError: if a checkpoint is missing or damaged, the settings break a
      rule, or runs would be sampled differently.
  """
  shared: dict[Any, tuple[Assembly, evaluation.Sampler]] = {}
  contestants = []
  for workdir in workdirs:
    theirs = workdir_lib.load_config(workdir)
    cfg = _judging(_reading(theirs, data or {}), max_tokens, settings)
    # These shape the sampler and its data: runs that agree share a program.
    alike = (
        cfg.model, cfg.mesh, cfg.data, cfg.format, cfg.rollout,
        cfg.reward.grader, cfg.probe.elicitation, cfg.evaluation,
    )  # fmt: skip
    if alike not in shared:
      parts = assembly.assemble(
          cfg, home=workdir, own=Own(text_grader=own.text_grader)
      )
      shared[alike] = parts, evaluation.make_sampler(parts)
    parts, sampler = shared[alike]
    if cfg.data.task == theirs.data.task:
      workdir_lib.check_data(parts, workdir)
    source = sources.chosen(workdir, which)
    params = sources.load(parts, source)
    contestants.append(
        Contestant(str(workdir), source.name, parts, sampler, params)
    )
  _check_alike(contestants)
  _tell_graders(contestants)
  for note in {c.parts.task.note for c in contestants} - {None}:
    print(f"note       {note}")
  for workdir in workdirs:
    if counts := workdir_lib.quantised(workdir):
      told = folder.describe_quantised(counts)
      print(f"weights    of {workdir}: {told}")
  return contestants


def _tell_graders(contestants: Sequence[Contestant]) -> None:
  """Warns of runs whose own grader is not the one of this evaluation."""
  for contestant in contestants:
    grader = contestant.parts.own.text_grader
    ours = name_of(grader) if grader else ""
    theirs = workdir_lib.own_grader(pathlib.Path(contestant.name))
    if ours != theirs:
      now, then = (x or "none" for x in (ours, theirs))
      print(
          f"warning: {contestant.name}: trained with own grader {then!r},"
          f" evaluated with {now!r}; a program chooses the grader of an"
          " evaluation by iapo_jax.cli.iapo.run('evaluate', own=...)"
      )


def _reading(
    cfg: config_lib.Config, changes: Mapping[str, Any]
) -> config_lib.Config:
  """Returns the configuration with another task, or other files of its task.

  A run's own task keeps the run's splits, since some of the published test
  problems may have been in its train split.
  """
  given = {k: v for k, v in changes.items() if v is not None}
  task = given.get("task", cfg.data.task)
  if task != cfg.data.task:
    place = pathlib.Path(cfg.data.source_dir).expanduser()
    has_files = (place / task).is_dir()
    published = {
        "split": "published",
        "first_rows": 0,
        "test_problems": 0,
        "arithmetic": ArithmeticConfig(),
        "gym": GymConfig(),
        "max_gold_tokens": max(cfg.data.max_gold_tokens, _GOLD_TOKENS),
        "source_dir": cfg.data.source_dir if has_files else "",
    }
    given = published | given
  data = dataclasses.replace(cfg.data, **given)
  return dataclasses.replace(cfg, data=data)


def _judging(
    cfg: config_lib.Config, max_tokens: int | None, settings: dict[str, Any]
) -> config_lib.Config:
  """Returns the configuration without the settings that only training needs."""
  given = {k: v for k, v in settings.items() if v is not None}
  longest = cfg.rollout.max_tokens if max_tokens is None else max_tokens
  default = config_lib.Config()
  return config_lib.checked(
      dataclasses.replace(
          cfg,
          evaluation=dataclasses.replace(cfg.evaluation, **given),
          rollout=dataclasses.replace(cfg.rollout, max_tokens=longest),
          mesh=_mesh_here(cfg.mesh),
          num_steps=0,
          reward=dataclasses.replace(default.reward, grader=cfg.reward.grader),
          probe=dataclasses.replace(
              default.probe, elicitation=cfg.probe.elicitation
          ),
          credit=default.credit,
          select=default.select,
          loss=default.loss,
          warm_start=default.warm_start,
      )
  )


def _mesh_here(mesh: MeshConfig) -> MeshConfig:
  """Returns the run's mesh, or a data-parallel one if it does not fit here."""
  sizes = dataclasses.astuple(mesh)
  devices = jax.device_count()
  fixed = math.prod(size for size in sizes if size != -1)
  if devices == fixed or (-1 in sizes and devices % fixed == 0):
    return mesh
  print(
      f"mesh       data {devices}: the run's (data, fsdp, tensor) = {sizes}"
      f" does not fit {devices} device{'s' if devices > 1 else ''}"
  )
  return MeshConfig()


def _check_alike(contestants: Sequence[Contestant]) -> None:
  """Raises ConfigError if runs differ in their sampling settings."""
  fields = ("evaluation.samples", "evaluation.batch_size", *SAMPLED_BY)
  first, *others = (config_lib.flatten(c.parts.cfg) for c in contestants)
  for other in others:
    for field in fields:
      if first[field] != other[field]:
        raise ConfigError(
            f"config.{field}: the runs have {first[field]} and {other[field]};"
            f" set one for all with --{field.partition('.')[2]}"
        )


def _check_seeds(
    contestants: Sequence[Contestant], seeds: Sequence[int]
) -> None:
  """Raises ConfigError if several seeds would give the same completions."""
  same = [c for c in contestants if not rules.samples_differ(c.parts.cfg)]
  if same and len(seeds) > 1:
    raise ConfigError(
        f"--seeds = {','.join(map(str, seeds))}: must be one seed at"
        " temperature 0: greedy completions are the same with every seed"
    )


def _check_problems(contestants: Sequence[Contestant], split: str) -> None:
  """Raises ConfigError if a run lacks the split or has other problems."""
  first = None
  for contestant in contestants:
    tables = contestant.parts.task.tables
    if split not in tables:
      task = contestant.parts.cfg.data.task
      rule = f"{task} has only these splits: {', '.join(tables)}"
      raise ConfigError(f"--split = {split!r}: {rule}")
    prompts = tables[split].prompts
    asked = [
        row[:length].tolist()  # runs may be padded to other lengths
        for tokens, lengths in (
            (prompts.tokens, prompts.lengths),
            (prompts.gold, prompts.gold_lengths),
        )
        for row, length in zip(tokens, lengths, strict=True)
    ]
    if first is None:
      first = asked
    if asked != first:
      raise ConfigError(
          f"run {contestant.name!r}: has other {split} problems than"
          f" {contestants[0].name!r}; evaluate it by a separate command"
      )


def judge(
    contestants: Sequence[Contestant],
    *,
    split: str,
    problems: int,
    seeds: Sequence[int],
) -> list[list[dict[str, float]]]:
  """Samples every contestant on the same problems with the same keys.

  Warns of contestants whose completions are often cut off.

  Calls alternate between contestants, so that a busy machine slows all of them
  alike. Each program runs once before it is timed.

  Args:
    contestants: policies to evaluate.
    split: a key of their problem tables.
    problems: number of problems, from the first; all if there are fewer.
    seeds: of sampling.

  Returns:
    For every contestant and seed the metrics of `evaluation.summarise`, the
    `seed`, and `seconds_per_completion`: the median time of a call, divided by
    its number of completions.

  Raises:
    ConfigError: if a run lacks the split or has other problems in it, or if
      greedy completions would be the same with every seed.
  """
  _check_seeds(contestants, seeds)
  _check_problems(contestants, split)
  _warm_up(contestants, split)
  everything: list[list[dict[str, float]]] = [[] for _ in contestants]
  sampled: list[list[Completions]] = [[] for _ in contestants]
  silent = not processes.is_first()
  for seed in tqdm.tqdm(seeds, desc="sampling seeds", disable=silent):
    key = KeyDomain.EVALUATION.key(seed)
    calls: list[list[tuple[Completions, float]]] = [[] for _ in contestants]
    streams = [
        evaluation.batches(c.parts, split, problems) for c in contestants
    ]
    for number, round_ in enumerate(zip(*streams, strict=True)):
      call_key = jax.random.fold_in(key, number)
      for i, (prompts, count) in enumerate(round_):
        start = time.perf_counter()
        found = contestants[i].sampler(contestants[i].params, prompts, call_key)
        done = evaluation.counted(found, count)
        calls[i].append((done, time.perf_counter() - start))
    for i, contestant in enumerate(contestants):
      completions, seconds = zip(*calls[i], strict=True)
      size = contestant.parts.cfg.evaluation.batch_size
      table = contestant.parts.task.tables[split]
      sampled[i].append(evaluation.concatenate(completions, table))
      everything[i].append(
          evaluation.summarise(sampled[i][-1])
          | {"seed": seed, SECONDS: statistics.median(seconds) / size}
      )
  for contestant, found in zip(contestants, sampled, strict=True):
    told = evaluation.cut_warning(found)
    if told and not silent:
      print(f"warning: {contestant.name} {contestant.checkpoint}: {told}")
  return everything


def _warm_up(contestants: Sequence[Contestant], split: str) -> None:
  """Compiles the samplers and calls each contestant's once."""
  for contestant in contestants:
    prompts, _ = next(evaluation.batches(contestant.parts, split, 1))
    key = KeyDomain.EVALUATION.key(0)
    jax.block_until_ready(
        contestant.sampler(contestant.params, prompts, key)
    )


def report(
    contestants: Sequence[Contestant],
    results: Sequence[Sequence[dict[str, float]]],
    split: str,
) -> list[dict[str, Any]]:
  """Returns one JSON-ready record per contestant.

  A record holds `run`, `checkpoint`, `task`, `split`, `skipped` (prompts that
  were too long), `batch_size`, `temperature`, `top_p`, `top_k`, `seeds` (the
  metrics of each), the `mean` of every metric, with several seeds its standard
  deviation `std` (ddof 1), a `note` if the task has one, and `own` if a user's
  function graded.
  """
  records = []
  for contestant, runs in zip(contestants, results, strict=True):
    names = [name for name in runs[0] if name != "seed"]
    columns = {name: [run[name] for run in runs] for name in names}
    record = {
        "run": contestant.name,
        "checkpoint": contestant.checkpoint,
        "task": contestant.parts.cfg.data.task,
        "split": split,
        "skipped": contestant.parts.task.tables[split].skipped,
        "batch_size": contestant.parts.cfg.evaluation.batch_size,
        **evaluation.sampling(contestant.parts.cfg.evaluation),
        "seeds": list(runs),
        "mean": {k: statistics.mean(v) for k, v in columns.items()},
    }
    if contestant.parts.task.note:
      record["note"] = contestant.parts.task.note
    if contestant.parts.own.described:
      record["own"] = contestant.parts.own.described
    if len(runs) > 1:
      record["std"] = {k: statistics.stdev(v) for k, v in columns.items()}
    records.append(record)
  return records


def write(records: Sequence[dict[str, Any]], stem: pathlib.Path) -> None:
  """Writes STEM.json with everything, and STEM.csv with a row per run and seed.

  Rows whose `seed` is `mean` or `std` summarise the seeds before them. A text
  that a spreadsheet would take for a formula gets a leading apostrophe.
  """
  as_json, as_csv = outputs(stem)
  files.write_json(as_json, {"runs": list(records)})
  shared = [
      "run", "checkpoint", "task", "split", "skipped", "batch_size",
      *evaluation.SAMPLING,
  ]  # fmt: skip
  text = io.StringIO()
  writer = csv.DictWriter(text, [*shared, "seed", *records[0]["mean"]])
  writer.writeheader()
  for record in records:
    base = {name: _no_formula(record[name]) for name in shared}
    writer.writerows(base | seed for seed in record["seeds"])
    for name in ("mean", "std"):
      if name in record:
        writer.writerow(base | {"seed": name} | record[name])
  files.write_text(as_csv, text.getvalue())


def _no_formula(value: Any) -> Any:
  """Protects a text that a spreadsheet would take for a formula."""
  formula = isinstance(value, str) and value.startswith(tuple("=+-@\t\r"))
  return f"'{value}" if formula else value


def outputs(stem: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the JSON and the CSV path of a stem, after making its folder.

  Raises:
    ConfigError: if the stem has no name, or a file could not be written.
  """
  if not stem.name:
    raise ConfigError(f"--output = {str(stem)!r}: must end in a file name")
  paths = tuple(stem.with_name(stem.name + end) for end in (".json", ".csv"))
  files.make_place("output", stem)
  for path in paths:
    if path.is_dir():
      raise ConfigError(f"--output = {str(stem)!r}: {path.name} is a folder")
  return paths


def rows(
    records: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
  """Returns a table of the main metrics: heads, and a row per record.

  ± is the standard deviation over sampling seeds; – is a metric that a file of
  an older version lacks.
  """
  k = evaluation.powers_of_two(int(records[0]["mean"]["samples"]))[-1]
  passed = [(f"pass@{k}", f"pass@{k}", 1, ".3f")]
  metrics = [
      ("accuracy", "accuracy", 1, ".3f"),
      *(passed if k > 1 else []),  # pass@1 is the accuracy
      (f"length@{k} (tokens)", f"length@{k}", 1, ".1f"),
      (f"pass@{k} / length@{k}", f"efficiency@{k}", 1, ".4f"),
      ("reasoning (tokens)", "mean_reasoning_tokens", 1, ".1f"),
      ("answer (tokens)", "mean_answer_tokens", 1, ".1f"),
      ("format", "format_rate", 1, ".3f"),
      ("cut", "cut_rate", 1, ".3f"),
      ("ms per completion", SECONDS, 1e3, ".3f"),
  ]

  def cell(record: Mapping[str, Any], name: str, scale: float, to: str) -> str:
    if name not in record["mean"]:
      return "–"
    numbers = [record[x][name] for x in ("mean", "std") if x in record]
    return " ± ".join(format(scale * number, to) for number in numbers)

  return ["run", *(head for head, *_ in metrics)], [
      [
          f"{record['run']} {record['checkpoint']}",
          *(cell(record, *how) for _, *how in metrics),
      ]
      for record in records
  ]


def table(records: Sequence[Mapping[str, Any]]) -> str:
  """Formats `rows` as Markdown, and how completions were sampled."""
  text = evaluation.sampled(records[0])
  note = f"\n\nSampling: {text}." if text else ""
  return markdown.table(*rows(records)) + note


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records in a JSON file of `write`.

  Raises:
    ConfigError: if the file is missing, or was not written by `write`.
  """
  records = files.read_json(path).get("runs")
  needed = {
      "run", "checkpoint", "task", "split", "batch_size", "seeds", "mean",
  }  # fmt: skip
  if not isinstance(records, list) or not all(
      isinstance(r, dict) and needed <= r.keys() and SECONDS in r["mean"]
      for r in records
  ):
    raise ConfigError(f"{str(path)!r}: was not written by `iapo evaluate`")
  return records
