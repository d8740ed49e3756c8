"""The loop: data, compiled step, logs, evaluation, checkpoint."""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tqdm
from jax.sharding import Mesh

from iapo_jax import (
    checkpoint,
    evaluation,
    rewards,
    sharding,
)
from iapo_jax import config as config_lib
from iapo_jax import state as state_lib
from iapo_jax.config import Config, ConfigError
from iapo_jax.data import pipeline
from iapo_jax.data import task as task_lib
from iapo_jax.optimizer import make_optimizer
from iapo_jax.rewards import host, token_match
from iapo_jax.train_step import make_train_step
from iapo_jax.types import Params, PyTree, StepOutput, TrainState
from iapo_jax.warm_start import Demonstrations, make_warm_start_step

Metrics = dict[str, float]


class MetricsLog:
  """One JSON object a line, flushed, so that a reader sees every step."""

  def __init__(self, workdir: pathlib.Path) -> None:
    self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")

  def write(self, stage: str, step: int, metrics: Metrics) -> None:
    """Appends a line.

    Args:
      stage: `warm_start`, `rl` or `validation`.
      step: of the stage, counted from 1.
      metrics: by name.
    """
    line = {"stage": stage, "step": step} | metrics
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


@dataclasses.dataclass(frozen=True)
class Run:
  """What every stage of a run shares.

  Attributes:
    cfg: the checked configuration, the vocabulary size filled in.
    task: what is read.
    mesh: devices.
    grader: grades inside compiled programs.
    log: of metrics.
  """

  cfg: Config
  task: task_lib.Task
  mesh: Mesh
  grader: rewards.Grader
  log: MetricsLog


def prepare(cfg: Config, workdir: pathlib.Path) -> Run:
  """Everything that can fail on user input, before any compilation.

  Args:
    cfg: the checked configuration.
    workdir: created if need be; must not hold another configuration's run.

  Returns:
    The run.

  Raises:
    ConfigError: for a rule that the data, devices or workdir break.
  """
  task = task_lib.load(cfg)
  cfg = _fill_vocabulary(cfg, len(task.tokenizer))
  mesh = sharding.make_mesh(cfg)
  if cfg.reward.grader == "host":
    grader = host.make_grader(task.tokenizer, mesh)
  else:
    try:
      tags = token_match.tags_of(task.tokenizer)
    except ValueError as error:
      raise ConfigError(f"config.{error}") from error
    grader = token_match.make_grader(tags)
  _claim_workdir(cfg, workdir)
  task.tokenizer.save_pretrained(workdir / "tokenizer")
  return Run(cfg, task, mesh, grader, MetricsLog(workdir))


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
  run = prepare(cfg, workdir)
  if (workdir / "summary.json").exists():
    print(f"{workdir} holds this run, finished: nothing to do")
    return
  print(config_lib.plan(run.cfg, run.mesh.size))
  for name, table in run.task.tables.items():
    print(
        f"{name:<10} {len(table.kept)} prompts, {table.skipped} skipped,"
        f" {table.truncated} truncated"
    )
  state = _initial_state(run)
  if run.cfg.warm_start.num_steps:
    state = warm_start(run, state)
  if run.cfg.num_steps:
    state = reinforce(run, state.params)
  checkpoint.save(workdir, state)
  summary = evaluate(run, state.params, "test")
  report = dataclasses.asdict(summary)
  report["seconds"] = time.perf_counter() - start
  (workdir / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
  run.log.close()
  print(
      f"test       accuracy {summary.accuracy:.3f} ± {summary.accuracy_se:.3f},"
      f" {summary.mean_tokens:.1f} tokens on {summary.problems} problems"
  )


def warm_start(run: Run, state: TrainState) -> TrainState:
  """The supervised stage.

  Args:
    run: what is shared.
    state: fresh, with this stage's optimizer.

  Returns:
    The state after it.
  """
  cfg, stage = run.cfg, run.cfg.warm_start
  optimizer, spec = _optimizer_and_spec(run, warm=True)
  step = make_warm_start_step(cfg, run.mesh, optimizer=optimizer, spec=spec)

  def augment(record: pipeline.Record, rng: Any) -> pipeline.Record:
    return run.task.demonstration(int(record["index"]), rng, cfg)

  records = pipeline.batches(
      len(run.task.tables["train"].kept),
      lambda index: {"index": index},
      batch_size=stage.batch_size,
      seed=cfg.seed,
      shard=(jax.process_index(), jax.process_count()),
      augment=augment,
  )
  batches = (
      sharding.put_batch(
          Demonstrations(
              pipeline.as_prompts(r), r["completion"], r["learned"]
          ),
          run.mesh,
      )
      for r in records
  )
  return _fit(
      run,
      "warm_start",
      lambda state, batch: step.lower(state, batch).compile(),
      state,
      batches,
      num_steps=stage.num_steps,
  )


def reinforce(run: Run, params: Params) -> TrainState:
  """The reinforcement-learning stage; `params` are also the reference.

  Args:
    run: what is shared.
    params: to start from; kept unchanged.

  Returns:
    The state after it.
  """
  cfg = run.cfg
  optimizer, spec = _optimizer_and_spec(run, warm=False)
  state = state_lib.create(
      spec,
      cfg.seed,
      model=cfg.model,
      optimizer=optimizer,
      credit=cfg.credit,
      params=params,
  )
  reference = params if cfg.loss.kl_weight else None
  step = make_train_step(
      cfg,
      run.mesh,
      vocabulary=run.task.vocabulary,
      grader=run.grader,
      optimizer=optimizer,
      spec=spec,
  )
  table = run.task.tables["train"]
  records = pipeline.batches(
      len(table.kept),
      table.record,
      batch_size=cfg.prompts_per_step,
      seed=cfg.seed,
      shard=(jax.process_index(), jax.process_count()),
  )
  batches = (
      sharding.put_batch(pipeline.as_prompts(r), run.mesh) for r in records
  )

  def compile_step(state: TrainState, batch: PyTree) -> Callable:
    compiled = step.lower(state, reference, batch).compile()
    return lambda state, batch: compiled(state, reference, batch)

  sampler = _sampler(run, spec.param_axes)

  def validate(state: TrainState, done: int) -> None:
    every = cfg.evaluation.every
    if every and (done % every == 0 or done == cfg.num_steps):
      summary = _evaluate(run, sampler, state.params, "validation", done)
      run.log.write("validation", done, dataclasses.asdict(summary))

  return _fit(
      run,
      "rl",
      compile_step,
      state,
      batches,
      num_steps=cfg.num_steps,
      after_step=validate,
  )


def evaluate(
    run: Run, params: Params, split: str, seed: int = 0
) -> evaluation.Summary:
  """Samples every problem of a split once.

  Args:
    run: what is shared.
    params: of the policy.
    split: `train`, `validation` or `test`.
    seed: of the sampling, beside the run's own.

  Returns:
    The summary.
  """
  _, spec = _optimizer_and_spec(run, warm=False)
  sampler = _sampler(run, spec.param_axes)
  return _evaluate(run, sampler, params, split, seed)


def load_policy(run: Run, workdir: pathlib.Path) -> Params:
  """The policy of a finished run, for this run's mesh.

  Args:
    run: what is shared.
    workdir: of the finished run.

  Returns:
    Its parameters.

  Raises:
    ConfigError: where it has no checkpoint or another model.
  """
  _, spec = _optimizer_and_spec(run, warm=False)
  theirs = _read_config(workdir) if (workdir / "config.json").exists() else {}
  ours = config_lib.flatten(run.cfg)
  for field in ours:
    if field.startswith("model.") and theirs.get(field, ours[field]) != (
        ours[field]
    ):
      raise ConfigError(
          f"config.{field} = {ours[field]!r}: the run in {str(workdir)!r} has"
          f" {theirs[field]!r}"
      )
  return checkpoint.load_params(
      workdir, spec.shapes.params, spec.shardings.params
  )


def _evaluate(
    run: Run,
    sampler: evaluation.Sampler,
    params: Params,
    split: str,
    seed: int,
) -> evaluation.Summary:
  cfg = run.cfg.evaluation
  count = len(run.task.tables[split].kept)
  return evaluation.evaluate(
      sampler,
      params,
      run.task.tables[split],
      run.mesh,
      problems=count if split == "test" else cfg.problems,
      batch_size=cfg.batch_size,
      key=jax.random.fold_in(jax.random.key(run.cfg.seed), seed),
  )


def _sampler(run: Run, param_axes: PyTree) -> evaluation.Sampler:
  return evaluation.make_sampler(
      run.cfg,
      run.mesh,
      vocabulary=run.task.vocabulary,
      grader=run.grader,
      param_axes=param_axes,
  )


def _optimizer_and_spec(run: Run, *, warm: bool) -> tuple[Any, Any]:
  cfg = run.cfg
  stage = cfg.warm_start if warm else cfg
  updates = stage.num_steps * (1 if warm else cfg.loss.num_updates)
  optimizer = make_optimizer(stage.optimizer, updates)
  spec = state_lib.state_spec(
      run.mesh, model=cfg.model, optimizer=optimizer, credit=cfg.credit
  )
  return optimizer, spec


def _initial_state(run: Run) -> TrainState:
  """Of the first stage: fresh weights, or those of `init_from`."""
  cfg = run.cfg
  optimizer, spec = _optimizer_and_spec(
      run, warm=bool(cfg.warm_start.num_steps)
  )
  params = None
  if cfg.init_from:
    params = load_policy(run, pathlib.Path(cfg.init_from))
  return state_lib.create(
      spec,
      cfg.seed,
      model=cfg.model,
      optimizer=optimizer,
      credit=cfg.credit,
      params=params,
  )


def _fit(
    run: Run,
    stage: str,
    compile_step: Callable[[TrainState, PyTree], Callable],
    state: TrainState,
    batches: Iterator[PyTree],
    *,
    num_steps: int,
    after_step: Callable[[TrainState, int], None] = lambda state, done: None,
) -> TrainState:
  """Compiles once, then steps, logging every one."""
  batch = next(batches)
  start = time.perf_counter()
  step = compile_step(state, batch)
  print(f"{stage}: compiled in {time.perf_counter() - start:.1f} s")
  after_step(state, 0)
  warner = ProbeWarner()
  interactive = sys.stderr.isatty()
  with tqdm.tqdm(
      total=num_steps, desc=stage, mininterval=0.5 if interactive else 10.0
  ) as bar:
    for done in range(1, num_steps + 1):
      start = time.perf_counter()
      state, output = step(state, batch)
      if done < num_steps:
        batch = next(batches)
      metrics = _fetch(output, run.cfg, time.perf_counter, start)
      run.log.write(stage, done, metrics)
      bar.set_postfix(_shown(metrics), refresh=False)
      bar.update()
      warner.check(metrics)
      after_step(state, done)
  return state


def _fetch(
    output: StepOutput, cfg: Config, clock: Callable[[], float], start: float
) -> Metrics:
  """Waits for a step's metrics and adds its time and throughput."""
  metrics = {k: float(v) for k, v in jax.device_get(output.metrics).items()}
  seconds = clock() - start
  metrics["time/step_seconds"] = seconds
  if "length/completion" in metrics:
    tokens = metrics["length/completion"] * cfg.sequences_per_step
    metrics["time/tokens_per_second"] = tokens / seconds
  return metrics


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


class ProbeWarner:
  """Says once each what makes information credit meaningless."""

  def __init__(self) -> None:
    self._said: set[str] = set()

  def check(self, metrics: Metrics) -> None:
    """Looks at one step's metrics.

    Args:
      metrics: by name; without probes nothing is said.
    """
    if "probe/entropy" not in metrics:
      return
    moved = metrics["probe/entropy_first"] - metrics["probe/entropy_last"]
    gap = metrics["probe/calibration_gap"]
    if abs(moved) < 0.05:
      self._say(
          "still",
          f"probes do not move (H_0 − H_R = {moved:.3f} nats): is the"
          " elicitation one the policy can answer?",
      )
    if abs(gap) > 0.5:
      self._say(
          "gap",
          f"probes are badly calibrated (gold log-likelihood + entropy ="
          f" {gap:.2f} nats; 0 is calibrated)",
      )
    if metrics["length/unfinished"] > 0.9:
      self._say(
          "cut",
          "over 90 % of completions reach rollout.max_tokens without an EOS",
      )

  def _say(self, kind: str, text: str) -> None:
    if kind not in self._said:
      self._said.add(kind)
      tqdm.tqdm.write(f"warning: {text}")


def _fill_vocabulary(cfg: Config, size: int) -> Config:
  """The vocabulary size of the tokenizer, where the config leaves it open."""
  if cfg.model.vocab_size == 0:
    model = dataclasses.replace(cfg.model, vocab_size=size)
    return dataclasses.replace(cfg, model=model)
  if cfg.model.vocab_size < size:
    raise ConfigError(
        f"config.model.vocab_size = {cfg.model.vocab_size}: must be at least"
        f" the tokenizer's {size}, or 0 to take it"
    )
  return cfg


def _claim_workdir(cfg: Config, workdir: pathlib.Path) -> None:
  """Writes the configuration, or makes sure the one there is the same."""
  path = workdir / "config.json"
  ours = config_lib.flatten(cfg)
  if path.exists():
    theirs = _read_config(workdir)
    for field in ours | theirs:
      if ours.get(field) != theirs.get(field):
        raise ConfigError(
            f"config.{field} = {ours.get(field)!r}: workdir {str(workdir)!r}"
            f" holds a run with {theirs.get(field)!r}; use another --workdir"
        )
    if not (workdir / "summary.json").exists():
      # Runs do not resume yet: an unfinished one starts over.
      _set_aside(workdir / "metrics.jsonl")
  workdir.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")


def _set_aside(path: pathlib.Path) -> None:
  """Renames a file to NAME.1, NAME.2, ...: nothing is lost."""
  if path.exists():
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
      number += 1
    path.rename(path.with_name(f"{path.name}.{number}"))


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  return json.loads((workdir / "config.json").read_text(encoding="utf-8"))
