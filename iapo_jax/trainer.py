"""The loop: data, compiled step, logs, evaluation, checkpoint."""

import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from iapo_jax import assembly, checkpoint, evaluation, plan, sharding
from iapo_jax import config as config_lib
from iapo_jax.assembly import Assembly
from iapo_jax.config import Config, ConfigError
from iapo_jax.data import pipeline
from iapo_jax.logs import Metrics, MetricsLog, ProbeWarner
from iapo_jax.types import (
    KeyDomain,
    Params,
    PyTree,
    StepOutput,
    TrainState,
)
from iapo_jax.warm_start import Demonstrations

Step = Callable[[TrainState, PyTree], tuple[TrainState, StepOutput]]


def train(cfg: Config, workdir: pathlib.Path) -> None:
  """Trains: warm start, then reinforcement learning, as configured.

  Writes `config.json`, `tokenizer/`, `metrics.jsonl`, `checkpoints/` and, last,
  `summary.json` (the evaluation on the test split) to the workdir. A workdir
  that holds this very run, finished, is left as it is.

  Args:
    cfg: the checked configuration.
    workdir: of the run.

  Raises:
    ConfigError: for a rule that the data, devices or workdir break.
  """
  start = time.perf_counter()
  if jax.process_count() > 1:
    raise ConfigError(
        f"process count = {jax.process_count()}: must be 1; several processes"
        " are not supported yet"
    )
  parts = assembly.assemble(cfg)
  if claim(workdir, parts):
    print(f"{workdir} holds this run, finished: nothing to do")
    return
  print(_introduction(parts))
  sampler = assembly.sampler_of(parts, assembly.reinforcement_stage(parts))
  with MetricsLog(workdir) as log:
    state = _run_stages(parts, sampler, log)
  checkpoint.save(workdir, state)
  count = len(parts.task.tables["test"].kept)
  summary = _sample(parts, sampler, state.params, "test", count)
  report = dataclasses.asdict(summary)
  report["seconds"] = time.perf_counter() - start
  (workdir / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
  print(
      f"test       accuracy {summary.accuracy:.3f} ± {summary.accuracy_se:.3f},"
      f" {summary.mean_tokens:.1f} tokens on {summary.problems} problems"
  )


def _run_stages(
    parts: Assembly, sampler: evaluation.Sampler, log: MetricsLog
) -> TrainState:
  """The state after the configured stages."""
  cfg, params, state = parts.cfg, None, None
  if cfg.init_from:
    params = load_policy(parts, pathlib.Path(cfg.init_from))
  if cfg.warm_start.num_steps:
    state = warm_start(parts, params, log)
    params = state.params
  if cfg.num_steps or state is None:
    state = reinforce(parts, params, sampler, log)
  return state


def claim(workdir: pathlib.Path, parts: Assembly) -> bool:
  """Makes a workdir this run's, or finds that it is.

  Args:
    workdir: created if need be.
    parts: of the run.

  Returns:
    Whether it holds this run, finished.

  Raises:
    ConfigError: where it holds a run with another configuration.
  """
  path = workdir / "config.json"
  ours = config_lib.flatten(parts.cfg)
  if path.exists():
    theirs = _read_config(workdir)
    for field in ours | theirs:
      if ours.get(field) != theirs.get(field):
        raise ConfigError(
            f"config.{field} = {ours.get(field)!r}: workdir {str(workdir)!r}"
            f" holds a run with {theirs.get(field)!r}; use another --workdir"
        )
    if (workdir / "summary.json").exists():
      return True
    # Runs do not resume yet: an unfinished one starts over.
    _set_aside(workdir / "metrics.jsonl")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
  except OSError as error:
    raise ConfigError(
        f"workdir {str(workdir)!r}: must be a folder that can be written"
        f" ({error.strerror})"
    ) from error
  parts.task.tokenizer.save_pretrained(workdir / "tokenizer")
  return False


def warm_start(
    parts: Assembly, params: Params | None, log: MetricsLog
) -> TrainState:
  """The supervised stage.

  Args:
    parts: of the run.
    params: to start from; fresh weights by default.
    log: of metrics.

  Returns:
    The state after it.
  """
  cfg = parts.cfg
  stage = assembly.warm_start_stage(parts)
  step = assembly.warm_start_step_of(parts, stage)

  def demonstrate(
      record: pipeline.Record, rng: np.random.Generator
  ) -> pipeline.Record:
    return parts.task.demonstration(int(record["index"]), rng, cfg)

  def as_batch(record: pipeline.Record) -> Demonstrations:
    return Demonstrations(
        prompts=pipeline.as_prompts(record),
        completion=record["completion"],
        learned=record["learned"],
    )

  batches = _batches(
      parts,
      lambda index: {"index": index},
      cfg.warm_start.batch_size,
      as_batch,
      augment=demonstrate,
  )
  return _fit(
      "warm_start",
      lambda state, batch: step.lower(state, batch).compile(),
      assembly.create_state(parts, stage, params),
      batches,
      parts,
      log,
      num_steps=cfg.warm_start.num_steps,
  )


def reinforce(
    parts: Assembly,
    params: Params | None,
    sampler: evaluation.Sampler,
    log: MetricsLog,
) -> TrainState:
  """The reinforcement-learning stage; its start is also the reference.

  Args:
    parts: of the run.
    params: to start from, kept unchanged; fresh weights by default.
    sampler: of validation.
    log: of metrics.

  Returns:
    The state after it.
  """
  cfg = parts.cfg
  stage = assembly.reinforcement_stage(parts)
  if params is None:
    params = assembly.create_state(parts, stage).params
  reference = params if cfg.loss.kl_weight else None
  step = assembly.train_step_of(parts, stage)

  def compile_step(state: TrainState, batch: PyTree) -> Step:
    compiled = step.lower(state, reference, batch).compile()
    return lambda state, batch: compiled(state, reference, batch)

  def validate(state: TrainState, done: int) -> None:
    every = cfg.evaluation.every
    if every and (done % every == 0 or done == cfg.num_steps):
      summary = _sample(
          parts, sampler, state.params, "validation", cfg.evaluation.problems
      )
      log.write("validation", done, dataclasses.asdict(summary))

  table = parts.task.tables["train"]
  return _fit(
      "rl",
      compile_step,
      assembly.create_state(parts, stage, params),
      _batches(parts, table.record, cfg.prompts_per_step, pipeline.as_prompts),
      parts,
      log,
      num_steps=cfg.num_steps,
      after_step=validate,
  )


def load_policy(parts: Assembly, workdir: pathlib.Path) -> Params:
  """The policy of a finished run, for this run's mesh.

  Args:
    parts: of this run.
    workdir: of the finished run.

  Returns:
    Its parameters.

  Raises:
    ConfigError: where it has no checkpoint or another model.
  """
  theirs = _read_config(workdir) if (workdir / "config.json").exists() else {}
  ours = config_lib.flatten(parts.cfg)
  for field, value in ours.items():
    if field.startswith("model.") and theirs.get(field, value) != value:
      raise ConfigError(
          f"config.{field} = {value!r}: the run in {str(workdir)!r} has"
          f" {theirs[field]!r}"
      )
  spec = assembly.reinforcement_stage(parts).spec
  return checkpoint.load_params(
      workdir, spec.shapes.params, spec.shardings.params
  )


def _sample(
    parts: Assembly,
    sampler: evaluation.Sampler,
    params: Params,
    split: str,
    problems: int,
) -> evaluation.Summary:
  # The same key each time: points of a curve differ by the policy alone.
  return evaluation.evaluate(
      sampler,
      params,
      parts.task.tables[split],
      parts.mesh,
      problems=problems,
      batch_size=parts.cfg.evaluation.batch_size,
      key=KeyDomain.EVALUATION.key(parts.cfg.seed),
  )


def _batches(
    parts: Assembly,
    record: Callable[[int], pipeline.Record],
    batch_size: int,
    as_batch: Callable[[pipeline.Record], PyTree],
    augment: Any = None,
) -> Iterator[PyTree]:
  """Endless batches of the train split, placed on the mesh."""
  records = pipeline.batches(
      len(parts.task.tables["train"].kept),
      record,
      batch_size=batch_size,
      seed=parts.cfg.seed,
      shard=(jax.process_index(), jax.process_count()),
      augment=augment,
  )
  return (sharding.put_batch(as_batch(r), parts.mesh) for r in records)


def _fit(
    name: str,
    compile_step: Callable[[TrainState, PyTree], Step],
    state: TrainState,
    batches: Iterator[PyTree],
    parts: Assembly,
    log: MetricsLog,
    *,
    num_steps: int,
    after_step: Callable[[TrainState, int], None] = lambda state, done: None,
) -> TrainState:
  """Compiles once, then steps, logging every one."""
  after_step(state, 0)
  if not num_steps:
    return state
  batch = next(batches)
  start = time.perf_counter()
  step = compile_step(state, batch)
  print(f"{name}: compiled in {time.perf_counter() - start:.1f} s", flush=True)
  warner = ProbeWarner()
  # Without a terminal every refresh is a line: few of them.
  interval = 0.5 if sys.stderr.isatty() else 15.0
  with tqdm.tqdm(total=num_steps, desc=name, mininterval=interval) as bar:
    for done in range(1, num_steps + 1):
      start = time.perf_counter()
      state, output = step(state, batch)
      if done < num_steps:
        batch = next(batches)  # while the devices work
      metrics = _fetch(output, start, parts.cfg.sequences_per_step)
      _check_finite(name, done, metrics)
      log.write(name, done, metrics)
      bar.set_postfix(_shown(metrics), refresh=False)
      bar.update()
      warner.check(metrics)
      after_step(state, done)
  return state


def _fetch(output: StepOutput, start: float, sequences: int) -> Metrics:
  """Waits for a step's metrics and adds its time and throughput."""
  metrics = {k: float(v) for k, v in jax.device_get(output.metrics).items()}
  seconds = time.perf_counter() - start
  metrics["time/step_seconds"] = seconds
  if "length/completion" in metrics:
    tokens = metrics["length/completion"] * sequences
    metrics["time/tokens_per_second"] = tokens / seconds
  return metrics


def _check_finite(stage: str, step: int, metrics: Metrics) -> None:
  """Stops a run that can no longer learn anything."""
  for name, value in metrics.items():
    if not math.isfinite(value):
      raise FloatingPointError(
          f"{stage} step {step}: {name} = {value}; the run is stopped and"
          " nothing of this step is saved"
      )


def _shown(metrics: Metrics) -> dict[str, str]:
  """What the progress bar shows."""
  shown = {
      "s": ("time/step_seconds", ".2f"),
      "tok/s": ("time/tokens_per_second", ".0f"),
      "acc": ("reward/accuracy", ".2f"),
      "len": ("length/completion", ".1f"),
      "nll": ("sft/nll", ".3f"),
  }
  return {
      name: format(metrics[key], style)
      for name, (key, style) in shown.items()
      if key in metrics
  }


def _introduction(parts: Assembly) -> str:
  """The derived plan and the sizes of the data."""
  lines = [plan.describe(parts.cfg, parts.mesh.size)]
  lines += [
      f"{name:<10} {len(table.kept)} prompts, {table.skipped} skipped,"
      f" {table.truncated} truncated"
      for name, table in parts.task.tables.items()
  ]
  return "\n".join(lines)


def _set_aside(path: pathlib.Path) -> None:
  """Renames a file to NAME.1, NAME.2, ...: nothing is lost."""
  if path.exists():
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
      number += 1
    path.rename(path.with_name(f"{path.name}.{number}"))


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  except ValueError as error:
    raise ConfigError(
        f"workdir {str(workdir)!r}: config.json is not JSON ({error})"
    ) from error
