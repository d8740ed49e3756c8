"""The loop of a stage: step, log, validate, save; and stop on request."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import grain
import tqdm

from iapo_jax.core import compilation, interrupts, processes
from iapo_jax.core.errors import SharedError
from iapo_jax.core.types import PyTree, StepOutput, TrainState
from iapo_jax.data.pipeline import Record
from iapo_jax.rl import finite
from iapo_jax.run import checkpoint, debugging, memory, replay
from iapo_jax.run.checkpoint import Checkpoints, Progress
from iapo_jax.run.context import Run
from iapo_jax.run.logs import Metrics


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of a run, for `fit`.

  Attributes:
    name: `warm_start` or `rl`.
    num_steps: of the whole stage, including those before a restart.
    step: the jitted step, of a state, `constants` and a batch.
    records: endless batches of the train split.
    place: puts a batch on the mesh.
    max_skipped: steps in a row without any update after which the stage stops.
    constants: arguments of the step that never change.
    own: names the user's parts of the step.
    updates: optimizer updates per step.
    save_start: whether the state before the first step is saved too.
    sequences: completions sampled per step; 0 if the step samples none.
    calls_host: whether the step calls the host.
    validate: maps run, state and number of finished steps to metrics; None if
      no validation is due.
    observe: called after a step with its number, batch, output and metrics.
  """

  run: Run
  name: str
  num_steps: int
  step: Any
  records: grain.DatasetIterator
  place: Callable[[Record], PyTree]
  max_skipped: int
  constants: tuple[PyTree, ...] = ()
  own: str = ""
  updates: int = 1
  save_start: bool = False
  sequences: int = 0
  calls_host: bool = False
  validate: Callable[[Run, TrainState, int], Metrics | None] = lambda *_: None
  observe: Callable[[int, PyTree, StepOutput, Metrics], None] = (
      lambda *_: None
  )


def fit(
    stage: Stage, state: TrainState, progress: Progress | None
) -> TrainState:
  """Runs a stage from its start or a checkpoint, and saves the end.

  `state` is that of step 0, or was restored together with `progress`; it is
  donated. Raises `Interrupted` if a signal asked to stop, after saving the
  state, and `FloatingPointError` if `max_skipped` steps in a row had no update.
  """
  run, kept = stage.run, stage.run.cfg.checkpoint
  with Checkpoints(
      checkpoint.stage_folder(run.workdir, stage.name),
      keep_last=kept.keep_last,
      keep_best=kept.keep_best,
  ) as checkpoints:
    if progress is None:
      progress = Progress(0, stage.records.get_state(), {})
      if stage.save_start:
        validation = stage.validate(run, state, 0)
        saved = dataclasses.replace(
            progress, logs=run.log.position(), seconds=run.seconds
        )
        checkpoints.save(state, saved, validation)
    else:
      stage.records.set_state(progress.data)
    if progress.done >= stage.num_steps:
      return state
    return _train(stage, checkpoints, state, progress)


def _train(
    stage: Stage,
    checkpoints: Checkpoints,
    state: TrainState,
    progress: Progress,
) -> TrainState:
  """Runs the steps after `progress`, at least one."""
  run, every = stage.run, stage.run.cfg.checkpoint.every
  first, skipped = progress.done + 1, progress.skipped
  batch = stage.place(next(stage.records))
  step, was_read = _compile(stage, state, batch)
  with (
      interrupts.deferred() as request,
      tqdm.tqdm(
          total=stage.num_steps,
          initial=first - 1,
          desc=stage.name,
          # Without a terminal every refresh prints a line: refresh rarely.
          mininterval=0.5 if sys.stderr.isatty() else 15.0,
          disable=not processes.is_first(),
      ) as bar,
  ):
    for done in range(first, stage.num_steps + 1):
      start = time.perf_counter()
      state, output = step(state, *stage.constants, batch)
      # Reads the next batch while the devices work. A checkpoint stores the
      # position before that batch.
      position = stage.records.get_state()
      following = stage.place(next(stage.records))
      metrics = _fetch(output, start, stage.sequences)
      if done == first:
        metrics |= _first_step(stage, was_read)
      run.log.write(stage.name, done, metrics)
      skipped = _count_skipped(stage, done, metrics, skipped)
      if skipped >= stage.max_skipped:
        checkpoints.settle()
        raise _stopped(stage, done, state, batch, metrics)
      bar.set_postfix(_shown(metrics), refresh=False)
      bar.update()
      stage.observe(done, batch, output, metrics)
      batch = following
      checkpoints.poll()
      validation = stage.validate(run, state, done)
      due = done == stage.num_steps or (every and done % every == 0)
      # All processes stop after the same step, whichever got the signal.
      asked = processes.highest(request.number)
      if validation or asked or due:
        reached = Progress(
            done, position, run.log.position(), skipped, run.seconds
        )
        checkpoints.save(state, reached, validation)
        # A signal may have come while saving.
        asked = processes.highest(request.number)
      if asked:
        break
    checkpoints.settle()
    # A signal that comes while the last step is written stops the run, too.
    asked = processes.highest(request.number)
    if asked:
      raise _interrupted(stage, checkpoints.folder / str(done), asked)
  return state


def _interrupted(
    stage: Stage, saved: pathlib.Path, number: int
) -> interrupts.Interrupted:
  return interrupts.Interrupted(
      number,
      f"saved {stage.name} step {saved.name} of {stage.num_steps} in {saved};"
      " the same command continues from there",
  )


def _compile(
    stage: Stage, state: TrainState, batch: PyTree
) -> tuple[debugging.Step, bool]:
  """Returns the compiled step, and whether it was read from the cache.

  With `debug` the step checks every call.
  """
  run, arguments = stage.run, (state, *stage.constants, batch)
  before = run.meter.read()
  if run.cfg.debug:
    step = debugging.watched(stage.step, *arguments)
  else:
    step = compilation.lower(stage.step, *arguments).compile()
    needed = memory.compiled_bytes(step)
    if needed is not None:  # to compare with the plan's estimate
      told = memory.readable(needed)
      print(f"memory     {stage.name} step {told} a device, as compiled")
  account = run.meter.read() - before
  # Flushed, so that the progress bar does not overwrite it.
  print(
      f"{stage.name}: compiled in {account.seconds:.1f} s,"
      f" {account.tracing:.1f} of them tracing"
      f" ({account.origin(calls_host=stage.calls_host)})",
      flush=True,
  )
  return step, account.was_read


def _first_step(stage: Stage, was_read: bool) -> Metrics:
  """Prints and returns how long the stage took until its first step ended."""
  account = stage.run.meter.since_mark()
  rest = account.seconds - account.tracing - account.compiling
  tqdm.tqdm.write(
      f"{stage.name}: first step done after {account.seconds:.1f} s: tracing"
      f" {account.tracing:.1f}, compiling {account.compiling:.1f}"
      f" ({account.programs} programs, {account.read} read from the cache),"
      f" all else {rest:.1f}"
  )
  return {
      "time/first_step_seconds": account.seconds,
      "time/first_step_tracing": account.tracing,
      "time/first_step_compiling": account.compiling,
      "time/first_step_cached": float(was_read),
  }


def _fetch(output: StepOutput, start: float, sequences: int) -> Metrics:
  """Waits for a step's metrics and adds its time and throughput."""
  metrics = output.numbers()
  seconds = time.perf_counter() - start
  metrics["time/step_seconds"] = seconds
  if sequences:
    tokens = metrics["length/completion"] * sequences
    metrics["time/tokens_per_second"] = tokens / seconds
  return metrics


def _count_skipped(
    stage: Stage, done: int, metrics: Metrics, before: int
) -> int:
  """Returns how many steps in a row had no update; warns of skipped updates."""
  count = round(metrics["update/skipped"])
  if not count:
    return 0
  stage.run.log.warn(
      stage.name,
      done,
      f"{count} of {stage.updates} updates skipped; not finite:"
      f" {', '.join(finite.offenders(metrics))}",
  )
  return before + 1 if count == stage.updates else 0


def _stopped(
    stage: Stage, done: int, state: TrainState, batch: PyTree, metrics: Metrics
) -> FloatingPointError:
  """Keeps the step for a replay; returns the error that ends the run."""
  kept = replay.folder(stage.run.workdir) / f"{stage.name}-{done}"
  told = f"To run it again: `iapo replay {kept}`"
  if stage.own:
    told = (
        "To run it again, call"
        f" iapo_jax.cli.iapo.run('replay', [{str(kept)!r}], own=...)"
    )
  try:
    processes.everywhere(
        lambda: replay.keep(kept, state, batch, metrics, stage.own)
    )
  except (OSError, SharedError) as error:
    told = f"It could not be kept for a replay ({error})"
  return FloatingPointError(
      f"{stage.name} step {done}: {', '.join(finite.offenders(metrics))} not"
      f" finite. No update was made in {stage.max_skipped} steps in a row"
      " (optimizer.max_skipped), so the run stops without saving this step."
      f" {told}. The same command would give the same numbers: use another"
      " --workdir with a lower learning rate or clip_norm, starting from"
      f" {_last_good(stage)}"
  )


def _last_good(stage: Stage) -> str:
  """Returns the flags that start another run from the last checkpoint."""
  folder = checkpoint.stage_folder(stage.run.workdir, stage.name).absolute()
  saved = checkpoint.steps(folder)
  if not saved:
    return "the same weights"
  flags = f"--config.init_from={folder / str(saved[-1])}"
  if stage.name == "rl":
    flags += " --config.warm_start.num_steps=0"
  return flags


def _shown(metrics: Metrics) -> dict[str, str]:
  """Returns what the progress bar shows."""
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
