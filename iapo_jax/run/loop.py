"""The loop of a stage: step, log, validate, save; and stop when asked to."""

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
  """What a loop runs.

  Attributes:
    name: `warm_start` or `rl`.
    num_steps: of the whole stage, those before a restart included.
    compile_step: the compiled step, from a state and a batch of its shapes.
    records: endless batches of the train split.
    place: puts a batch on the mesh.
    checkpoints: of the stage.
    meter: of what compiling costs; marked where the stage begins.
    save_every: steps between saves; 0 adds none.
    max_skipped: steps in a row without any update, until the stage stops.
    replays: folder that keeps the step it stops at.
    own: which parts of the step are a user's.
    updates: of the optimizer, in a step.
    save_start: whether the state before the first step is saved too.
    sequences: completions a step samples; 0 where it samples none.
    calls_host: whether the step does.
    validate: metrics of the state after so many steps, None where it is not
      the time for it.
    observe: looks at a step: its number, batch, output and metrics.
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
  """Runs a stage, from its start or from where it was saved.

  Args:
    stage: what to run.
    state: at its start, or restored.
    log: of metrics.
    progress: restored with the state; None at the start.

  Returns:
    The state after the stage, which is saved.

  Raises:
    Interrupted: where somebody asked to stop; the state is saved.
    FloatingPointError: where too many steps in a row had no update.
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
  # Without a terminal every refresh is a line: few of them.
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
      # While the devices work; the checkpoint's position is before it.
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
      # Whichever process was asked, all stop, and after the same step.
      asked = processes.highest(request.number)
      if validation or asked or _save_is_due(stage, done):
        _save(stage, state, log, done, validation, position, skipped)
        # Perhaps only since it was saved.
        asked = processes.highest(request.number)
      if asked:
        break
    _settle(stage, done, request)
  return state


def _settle(stage: Stage, done: int, request: interrupts.Request) -> None:
  """Waits until all is saved; raises where somebody asked to stop until then.

  Whoever asks while the last step is written must wait for that, too.
  """
  stage.checkpoints.settle()
  asked = processes.highest(request.number)
  if asked:
    raise _interrupted(stage, done, asked)


def _compile(
    stage: Stage, state: TrainState, batch: PyTree
) -> tuple[Step, bool]:
  """The compiled step, and whether it was read instead."""
  before = stage.meter.read()
  step = stage.compile_step(state, batch)
  account = stage.meter.read() - before
  # Not over the bar of the next line, and there to read in a file too.
  print(
      f"{stage.name}: compiled in {account.seconds:.1f} s,"
      f" {account.tracing:.1f} of them tracing"
      f" ({account.origin(calls_host=stage.calls_host)})",
      flush=True,
  )
  return step, account.was_read


def _first_step(stage: Stage, was_read: bool) -> Metrics:
  """How long the stage took until its first step was done; also told."""
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
  """How many steps in a row had no update; tells of every one that misses."""
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
  """Why a run stops that learns nothing any longer, which is kept."""
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
  """How another run starts from the last checkpoint of this one."""
  saved = checkpoint.steps(stage.checkpoints.folder)
  if not saved:
    return "the same start"
  flags = f"--config.init_from={stage.checkpoints.folder / str(saved[-1])}"
  if stage.name == "rl":
    flags += " --config.warm_start.num_steps=0"
  return flags


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
