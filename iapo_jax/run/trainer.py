"""Runs training from the configuration to the summary, and resumes it."""

import contextlib
import pathlib
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping

import numpy as np

from iapo_jax.config import gym
from iapo_jax.config import parsing as config_lib
from iapo_jax.config.schema import Config
from iapo_jax.core import compilation, processes, sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.interrupts import Interrupted
from iapo_jax.core.types import Params, Prompts, PyTree, StepOutput, TrainState
from iapo_jax.data import pipeline, splits
from iapo_jax.hf import families, folder
from iapo_jax.rl.own import NOTHING, Own
from iapo_jax.rl.warm_start import Demonstrations
from iapo_jax.run import (
  assembly,
  evaluation,
  judging,
  logs,
  loop,
  plan,
  resumption,
  sources,
  watch,
)
from iapo_jax.run import samples as samples_lib
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.run.assembly import Assembly
from iapo_jax.run.checkpoint import Progress
from iapo_jax.run.context import Run
from iapo_jax.run.logs import Metrics, RunLog


def train(
    cfg: Config,
    workdir: pathlib.Path,
    *,
    dry_run: bool = False,
    programs: pathlib.Path | None = None,
    own: Own = NOTHING,
) -> None:
  """Trains: warm start, then reinforcement learning, as configured.

  Writes the log files (see `logs`), `config.json`, `tokenizer/` or
  `pretrained/`, `checkpoints/` and, last, `summary.json` (the evaluation on the
  test split) to the workdir. Leaves a finished run as it is. Continues an
  unfinished one from its newest intact checkpoint; it ends as if it had never
  stopped.

  If several processes have joined (`processes.join`), all must call this with
  the same arguments and a workdir that they share.

  Args:
    cfg: the checked configuration.
    workdir: folder of the run, created if missing.
    dry_run: only print the plan; nothing is compiled, and nothing is written
      but in a temporary folder.
    programs: folder that keeps compiled programs from one start to the next;
      JAX's own setting takes precedence; None uses only that.
    own: the user's functions; a resumed run needs the same ones.

  Raises:
    ConfigError: if the data, devices or workdir break a rule.
    SharedError: for the same, with several processes.
    Interrupted: if a signal asked to stop; the message says what is saved.
    FloatingPointError: if too many steps in a row were not finite, or with
      `debug` at the first one.
    SaveError: if a checkpoint could not be written.
  """
  start = time.perf_counter()
  cache = compilation.place(programs)
  if dry_run:
    _print_plan(cfg, workdir, own, cache)
    return
  parts = _assemble(cfg, workdir, own)
  with (
      _claimed(workdir, parts) as finished,
      compilation.kept(programs),
      compilation.Meter(start) as meter,
  ):
    if finished:
      print(f"{workdir} holds this run, finished: nothing to do")
      return
    print(_introduction(parts, cache, workdir_lib.quantised(workdir)))
    _tell_export(parts)
    saved = resumption.find(parts, workdir)
    position = saved.progress.logs if saved else None
    sampler = evaluation.make_sampler(parts)
    try:
      place = workdir if processes.is_first() else None
      with processes.everywhere(
          lambda: RunLog(place, position, wandb=cfg.log.wandb)
      ) as log:
        began = start - (saved.progress.seconds if saved else 0.0)
        run = Run(parts, workdir, log, sampler, meter, began)
        # A variable that still names the state would keep it on the devices.
        begun, saved = [saved], None
        judging.summarise(run, _run_stages(run, begun.pop()))
    except KeyboardInterrupt as error:
      raise Interrupted(
          signal.SIGINT,
          "stopped at once; the same command continues from the last"
          " checkpoint, if there is one",
      ) from error


def _print_plan(
    cfg: Config, workdir: pathlib.Path, own: Own, cache: str | None
) -> None:
  """Makes all checks and prints the plan; keeps no file."""
  with tempfile.TemporaryDirectory() as name, compilation.unkept():
    scratch = pathlib.Path(name)
    parts = _assemble(cfg, workdir, own, scratch)
    if workdir_lib.is_begun(workdir):
      counts = workdir_lib.quantised(workdir)
    else:
      counts = workdir_lib.quantised_start(cfg, scratch)
    print(_introduction(parts, cache, counts))


def _assemble(
    cfg: Config,
    workdir: pathlib.Path,
    own: Own,
    scratch: pathlib.Path | None = None,
) -> Assembly:
  """Builds the parts and makes all checks that need no compiling.

  `scratch` is the temporary folder of a dry run.
  """
  processes.check_same({
      f"config.{name}": value
      for name, value in config_lib.flatten(cfg).items()
      # Processes may name other folders; the content is compared below.
      if name not in config_lib.PLACES_OF_DATA
  })
  begun = processes.on_first(lambda: workdir_lib.is_begun(workdir))

  def assemble() -> Assembly:
    home = workdir if begun else None
    parts = assembly.assemble(cfg, home=home, scratch=scratch, own=own)
    splits.check_trainable(parts.task.tables, cfg.data)
    if scratch or not begun:
      splits.check_overlap(parts.task.repeats, cfg.data)
      sources.check_start(parts, scratch)
    return parts

  parts = processes.everywhere(assemble)
  processes.check_same({
      f"fingerprint of the {split} problems": value
      for split, value in parts.task.fingerprint.items()
  })
  return parts


@contextlib.contextmanager
def _claimed(workdir: pathlib.Path, parts: Assembly) -> Iterator[bool]:
  """Locks the workdir in the first process; yields whether the run is over."""
  with contextlib.ExitStack() as stack:

    def claim() -> bool:
      stack.enter_context(workdir_lib.locked(workdir))
      return workdir_lib.claim(workdir, parts)

    finished = processes.on_first(claim)
    processes.everywhere(lambda: workdir_lib.check_shared(workdir))
    yield finished


def _run_stages(run: Run, saved: resumption.Saved | None) -> TrainState:
  """Runs the configured stages and returns the state after them.

  A variable that still names a state keeps its weights on the devices, so each
  is deleted once it is used.
  """
  cfg, parts = run.cfg, run.parts
  stage = assembly.reinforcement_stage(parts)
  reference = None
  if saved and saved.stage == "rl":
    goes_on = saved.progress.done < cfg.num_steps
    if goes_on and cfg.loss.kl_weight:
      began = resumption.reference(parts, run.workdir)
      reference = assembly.reference_of(parts, stage, began)
      del began
    return reinforce(run, saved.state, reference, saved.progress)
  if cfg.warm_start.num_steps:
    if saved:
      state, progress = saved.state, saved.progress
    else:
      first = assembly.warm_start_stage(parts)
      state = assembly.create_state(parts, first, sources.start(parts))
      progress = None
    state = warm_start(run, state, progress)
    run.meter.mark()  # time from here on counts for the next stage
    if not cfg.num_steps:
      return state
    params = state.params
    del state, saved
  else:
    params = sources.start(parts)
  if params is None:
    params = assembly.create_state(parts, stage).params
  if cfg.loss.kl_weight:
    reference = assembly.reference_of(parts, stage, params)
  state = assembly.create_state(parts, stage, params)
  del params
  return reinforce(run, state, reference, None)


def warm_start(
    run: Run, state: TrainState, progress: Progress | None
) -> TrainState:
  """Runs the supervised stage from `state`, which is donated.

  `progress` says where to continue; None at the start.
  """
  cfg, task = run.cfg, run.parts.task
  size = cfg.warm_start.batch_size
  stage = assembly.warm_start_stage(run.parts)

  def demonstrate(
      record: pipeline.Record, rng: np.random.Generator
  ) -> pipeline.Record:
    return task.demonstration(int(record["index"]), rng, cfg)

  def place(record: pipeline.Record) -> PyTree:
    batch = Demonstrations(
        prompts=pipeline.as_prompts(record),
        completion=record["completion"],
        learned=record["learned"],
    )
    return sharding.put_rows(batch, run.parts.mesh, size)

  todo = loop.Stage(
      run=run,
      name="warm_start",
      num_steps=cfg.warm_start.num_steps,
      step=assembly.warm_start_step_of(run.parts, stage),
      records=pipeline.batches(
          len(task.demonstrable),
          lambda index: {"index": task.demonstrable[index]},
          batch_size=size,
          seed=cfg.seed,
          rows=sharding.own_rows(run.parts.mesh, size),
          augment=demonstrate,
      ),
      place=place,
      max_skipped=cfg.warm_start.optimizer.max_skipped,
  )
  return loop.fit(todo, state, progress)


def reinforce(
    run: Run,
    state: TrainState,
    reference: Params | None,
    progress: Progress | None,
) -> TrainState:
  """Runs the reinforcement-learning stage from `state`, which is donated.

  `reference` is the policy that the stage began with, from
  `assembly.reference_of`, if the loss compares with it. `progress` says where
  to continue; None at the start.
  """
  cfg, size = run.cfg, run.cfg.prompts_per_step
  stage = assembly.reinforcement_stage(run.parts)
  table = run.parts.task.tables["train"]
  todo = loop.Stage(
      run=run,
      name="rl",
      num_steps=cfg.num_steps,
      step=assembly.train_step_of(run.parts, stage),
      records=pipeline.batches(
          len(table.kept),
          table.record,
          batch_size=size,
          seed=cfg.seed,
          rows=sharding.own_rows(run.parts.mesh, size),
      ),
      place=lambda record: sharding.put_rows(
          pipeline.as_prompts(record), run.parts.mesh, size
      ),
      max_skipped=cfg.optimizer.max_skipped,
      constants=(reference,),
      own=run.parts.own.described,
      updates=cfg.loss.num_updates,
      save_start=True,
      sequences=cfg.sequences_per_step,
      calls_host=run.parts.grades_on_host or bool(run.parts.rewarder),
      validate=judging.validate,
      observe=_Observer(run),
  )
  return loop.fit(todo, state, progress)


class _Observer:
  """Logs completions and warnings about the metrics."""

  def __init__(self, run: Run) -> None:
    self._run = run
    data = run.cfg.data
    several = data.task == "reasoning_gym" and gym.several(data.gym)
    self._watch = watch.Watch(run.cfg.rollout.max_tokens, golds=not several)
    if not processes.is_first():
      return
    # A resumed run has seen all steps before its checkpoint.
    for line in logs.stage_metrics(run.workdir, "rl"):
      self._watch.check(line["step"], line, lambda *_: None)

  def __call__(
      self, done: int, batch: Prompts, output: StepOutput, metrics: Metrics
  ) -> None:
    cfg, log = self._run.cfg, self._run.log
    self._watch.check(
        done, metrics, lambda step, text: log.warn("rl", step, text)
    )
    every = cfg.log.samples_every
    if every and (done % every == 0 or done in (1, cfg.num_steps)):
      rows = samples_lib.fetch(batch, output.samples, cfg.log.samples)
      tokenizer = self._run.parts.task.tokenizer
      log.write_samples(
          samples_lib.records(
              done, *rows, tokenizer, group_size=cfg.group_size,
              probed="probe/entropy_first" in metrics,
          )
      )


def _tell_export(parts: Assembly) -> None:
  """Warns before training if no model family can hold the model."""
  if not parts.cfg.model.pretrained:
    try:
      families.config_of(parts.cfg.model)
    except ConfigError as error:
      print(f"warning: this model cannot be exported: {error}", flush=True)


def _introduction(
    parts: Assembly, cache: str | None, quantised: Mapping[str, int]
) -> str:
  """Returns the plan, where programs are kept, and the sizes of the data.

  `cache` is the folder of compiled programs, None for none; `quantised` is from
  `workdir.quantised`.
  """
  stage = assembly.reinforcement_stage(parts)
  lines = []
  if quantised:
    lines.append(f"weights    {folder.describe_quantised(quantised)}")
  lines += [
      plan.describe(parts.cfg, parts.mesh, stage.spec),
      plan.describe_programs(
          parts.cfg,
          cache,
          own_texts=bool(parts.rewarder),
          own_grades=bool(parts.own.text_grader),
      ),
  ]
  lines += [
      f"{name:<10} {len(table.kept)} prompts, {table.skipped} skipped,"
      f" {table.truncated} truncated"
      for name, table in parts.task.tables.items()
  ]
  if parts.task.repeats:
    told = splits.describe_repeats(parts.task.repeats)
    lines.append(f"repeats    {told}")
  if parts.cfg.warm_start.num_steps:
    there = len(parts.task.problems["train"])
    lines.append(
        f"solutions  {len(parts.task.demonstrable)} of {there} train problems"
        " have one that fits"
    )
  if parts.task.columns:
    lines.append(f"columns    {', '.join(parts.task.columns)}")
  lines += parts.task.described
  if parts.own.described:
    lines.append(f"own        {parts.own.described}")
  if parts.own.text_grader and parts.cfg.reward.grader != "host":
    lines.append(
        f"own        reward.grader={parts.cfg.reward.grader} has no effect:"
        " what the text grader leaves open is graded as with reward.grader=host"
    )
  if parts.task.note:
    lines.append(f"note       {parts.task.note}")
  return "\n".join(lines)
