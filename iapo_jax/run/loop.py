"""The loop of a stage: step, log, validate, save; and stop on request."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import grain
import tqdm

from iapo_jax.core import compilation, interrupts, processes
from iapo_jax.core.errors import SharedError
from iapo_jax.core.types import PyTree, StepOutput, TrainState
from iapo_jax.data.pipeline import Record
from iapo_jax.rl import finite
from iapo_jax.run import checkpoint, replay
from iapo_jax.run.checkpoint import Checkpoints, Progress
from iapo_jax.run.logs import Log, Metrics

Step = Callable[[TrainState, PyTree], tuple[TrainState, StepOutput]]


@dataclasses.dataclass(frozen=True)
class Stage:
  """What `fit` runs.

  Attributes:
    name: `warm_start` or `rl`.
    num_steps: of the whole stage, including those before a restart.
    compile_step: compiles the step for a state and a batch of these shapes.
    records: endless batches of the train split.
    place: puts a batch on the mesh.
    meter: measures what compiling costs; marked where the stage begins.
    save_every: steps between saves; 0 saves only at the end, at validations and
      on request.
    max_skipped: steps in a row without any update after which the stage stops.
    replays: folder that keeps the step at which it stops.
    own: names the user's parts of the step.
    updates: of the optimizer, per step.
    save_start: whether the state before the first step is saved too.
    sequences: completions sampled per step; 0 if the step samples none.
    calls_host: whether the step calls the host.
    validate: returns metrics of the state after so many steps, None if it is
      not time to validate.
    observe: looks at a finished step: number, batch, output, metrics.
  """

  name: str
  num_steps: int
  compile_step: Callable[[TrainState, PyTree], Step]
  records: grain.DatasetIterator
  place: Callable[[Record], PyTree]
  checkpoints: Checkpoints
  meter: compilation.Meter
  save_every: int
  max_skipped: int
  replays: pathlib.Path
  own: str = ""
  updates: int = 1
  save_start: bool = False
  sequences: int = 0
  calls_host: bool = False
  validate: Callable[[TrainState, int], Metrics | None] = lambda *_: None
  observe: Callable[[int, PyTree, StepOutput, Metrics], None] = (
      lambda *_: None
  )


def fit(
    stage: Stage, state: TrainState, log: Log, progress: Progress | None
) -> TrainState:
  """Runs a stage from its start, or from where it was saved, and saves the end.

  Args:
    stage: what to run.
    state: at the start of the stage, or restored; donated.
    log: gets the metrics.
    progress: restored with the state; None at the start.

  Returns:
    The state after the stage.

  Raises:
    Interrupted: if a signal asked to stop; the state is saved.
    FloatingPointError: if `max_skipped` steps in a row had no update.
  """
  skipped = progress.skipped if progress else 0
  if progress:
    stage.records.set_state(progress.data)
  elif stage.save_start:
    _save(stage, state, log, 0, stage.validate(state, 0))
  first = progress.done + 1 if progress else 1
  if first > stage.num_steps:
    return state
  batch = stage.place(next(stage.records))
  step, was_read = _compile(stage, state, batch)
  # Without a terminal every refresh prints a line: refresh rarely.
  interval = 0.5 if sys.stderr.isatty() else 15.0
  with (
      interrupts.deferred() as request,
      tqdm.tqdm(
          total=stage.num_steps,
          initial=first - 1,
          desc=stage.name,
          mininterval=interval,
          disable=not processes.is_first(),
      ) as bar,
  ):
    for done in range(first, stage.num_steps + 1):
      start = time.perf_counter()
      state, output = step(state, batch)
      # Reads the next batch while the devices work. A checkpoint stores the
      # position before that batch.
      position = stage.records.get_state()
      following = stage.place(next(stage.records))
      metrics = _fetch(output, start, stage.sequences)
      if done == first:
        metrics |= _first_step(stage, was_read)
      log.write(stage.name, done, metrics)
      skipped = _count_skipped(stage, done, metrics, log, skipped)
      if skipped >= stage.max_skipped:
        raise _stopped(stage, done, state, batch, metrics)
      bar.set_postfix(_shown(metrics), refresh=False)
      bar.update()
      stage.observe(done, batch, output, metrics)
      batch = following
      stage.checkpoints.poll()
      validation = stage.validate(state, done)
      # All processes stop after the same step, whichever got the signal.
      asked = processes.highest(request.number)
      if validation or asked or _save_is_due(stage, done):
        _save(stage, state, log, done, validation, position, skipped)
        # A signal may have come while saving.
        asked = processes.highest(request.number)
      if asked:
        break
    _settle(stage, done, request)
  return state


def _settle(stage: Stage, done: int, request: interrupts.Request) -> None:
  """Waits until all is saved; raises if a signal has asked to stop by then.

  A stop that is requested while the last step is written waits for that, too.
  """
  stage.checkpoints.settle()
  asked = processes.highest(request.number)
  if asked:
    raise _interrupted(stage, done, asked)


def _compile(
    stage: Stage, state: TrainState, batch: PyTree
) -> tuple[Step, bool]:
  """Returns the compiled step, and whether it was read from the cache."""
  before = stage.meter.read()
  step = stage.compile_step(state, batch)
  account = stage.meter.read() - before
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
  account = stage.meter.since_mark()
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


def _save_is_due(stage: Stage, done: int) -> bool:
  every = stage.save_every
  return done == stage.num_steps or bool(every and done % every == 0)


def _save(
    stage: Stage,
    state: TrainState,
    log: Log,
    done: int,
    validation: Metrics | None,
    position: dict | None = None,
    skipped: int = 0,
) -> None:
  position = stage.records.get_state() if position is None else position
  progress = Progress(done, position, log.position(), skipped)
  stage.checkpoints.save(state, progress, validation)


def _interrupted(
    stage: Stage, done: int, number: int
) -> interrupts.Interrupted:
  return interrupts.Interrupted(
      number,
      f"saved {stage.name} step {done} of {stage.num_steps} in"
      f" {stage.checkpoints.folder / str(done)}; the same command goes on"
      " from there",
  )


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
    stage: Stage, done: int, metrics: Metrics, log: Log, before: int
) -> int:
  """Returns how many steps in a row had no update; warns of skipped updates."""
  count = round(metrics["update/skipped"])
  if not count:
    return 0
  log.warn(
      stage.name,
      done,
      f"{count} of {stage.updates} updates skipped; not finite:"
      f" {', '.join(finite.offenders(metrics))}",
  )
  return before + 1 if count == stage.updates else 0


def _stopped(
    stage: Stage, done: int, state: TrainState, batch: PyTree, metrics: Metrics
) -> FloatingPointError:
  """Keeps the last step for a replay; returns the error that ends the run."""
  stage.checkpoints.settle()
  kept = stage.replays / f"{stage.name}-{done}"
  told = f"python experiments/replay.py {kept} runs it again"
  if stage.own:
    told = f"call iapo_jax.run.replay.again with {kept} to run it again"
  try:
    processes.everywhere(
        lambda: replay.keep(kept, state, batch, metrics, stage.own)
    )
  except (OSError, SharedError) as error:
    told = f"it could not be kept for a replay ({error})"
  return FloatingPointError(
      f"{stage.name} step {done}: {', '.join(finite.offenders(metrics))} not"
      " finite, and no update was made in so many steps in a row as"
      f" optimizer.max_skipped allows ({stage.max_skipped}); the run is stopped"
      f" and this step is not saved. {told[0].upper()}{told[1:]}. The same"
      " command would come to the same numbers: use another --workdir with a"
      f" lower learning rate or clip_norm, from {_last_good(stage)}"
  )


def _last_good(stage: Stage) -> str:
  """Says how another run starts from the last checkpoint of this one."""
  saved = checkpoint.steps(stage.checkpoints.folder)
  if not saved:
    return "the same start"
  flags = f"--config.init_from={stage.checkpoints.folder / str(saved[-1])}"
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
