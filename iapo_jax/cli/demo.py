r"""Trains one warm start, then several methods from it, and compares them.

  iapo demo                     # what `make demo` runs: sums
  iapo demo --config=smollm2 --workdir=runs/lm  # `make lm`: a language model
  iapo demo --seeds=0,1,2 --methods=grpo,paper,to_go,shuffled,length_penalty
  iapo demo --tune_grpo

Every method starts from the same checkpoint and has the same budget. Each is
evaluated on the held-out test problems, one completion each, sampled at
temperature 1. The page at the end compares them. The same command skips
finished runs and continues interrupted ones; delete the folder to start over.
"""

import argparse
import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from iapo_jax.cli import command
from iapo_jax.config import demos, methods, parsing, presets
from iapo_jax.config.demos import Demo
from iapo_jax.config.schema import Config
from iapo_jax.core import files, markdown
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs, trainer
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.tools import comparison
from iapo_jax.tools.report import page

# Key in summary.json, and label, of each method.
_STYLE = {
    "sft": ("sft", "warm start"),
    "grpo": ("grpo", "GRPO"),
    "paper": ("iapo_paper", "IAPO paper"),
    "to_go": ("iapo_to_go", "IAPO to_go"),
    "faithful": ("iapo_faithful", "authors' code, exact probes"),
    "shuffled": ("iapo_to_go_shuffled", "to_go, shuffled (control)"),
    "length_penalty": ("length_penalty", "length penalty (control)"),
    "chance": ("chance", "chance of the gold answer, priced"),
}
_WARM_START = "sft"


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add(
      "--config",
      default="arithmetic",
      metavar="NAME[:TASK]",
      help="a configuration that has a demo: arithmetic (default), or smollm2,"
      " perhaps with a task, as in smollm2:sums",
  )
  add(
      "--workdir",
      help="folder of the demo; by default runs/demo, and runs/NAME for another"
      " configuration than arithmetic",
  )
  add(
      "--seeds",
      default=["0"],
      type=command.words,
      help="seeds; each repeats the whole demo",
  )
  add(
      "--methods",
      default=None,
      type=command.words,
      help="methods to train, instead of those of the demo; also the controls"
      " shuffled and length_penalty",
  )
  add(
      "--tune_grpo",
      action="store_true",
      help="only train GRPO at each declared learning rate, from the first"
      " seed's warm start, and print its final validation accuracy",
  )
  add(
      "--small",
      action="store_true",
      help="run a few steps of everything, to see that it works",
  )


@dataclasses.dataclass(frozen=True)
class _Run:
  """One run of the demo: a method from the warm start of a seed."""

  method: str
  seed: int
  learning_rate: float | None = None

  @property
  def folder(self) -> str:
    """Its folder in that of the demo."""
    name = self.method
    if self.learning_rate is not None:
      name += f"-{self.learning_rate:g}"
    return f"seed-{self.seed}/{name}"

  @property
  def label(self) -> str:
    """Names it in what is printed."""
    return f"{_style(self.method)[1]}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class _Show:
  """The demo that a user asked for.

  Attributes:
    name: of the configuration, perhaps with its task.
    small: whether runs are tiny.
  """

  name: str
  demo: Demo
  workdir: pathlib.Path
  small: bool

  def folder(self, run: _Run) -> pathlib.Path:
    """Returns the folder of a run."""
    return self.workdir / run.folder

  def is_finished(self, run: _Run) -> bool:
    """Returns whether a run has its summary."""
    return (self.folder(run) / workdir_lib.SUMMARY).exists()

  def minutes(self, run: _Run) -> float:
    """Returns the announced minutes of a run."""
    warm_start, other = self.demo.minutes
    return warm_start if run.method == _WARM_START else other


def run(given: argparse.Namespace) -> None:
  """Trains what is not trained yet, then reports."""
  place = "demo" if given.config == "arithmetic" else given.config
  show = _Show(
      given.config,
      demos.read(given.config.partition(":")[0]),
      pathlib.Path(given.workdir or f"runs/{place.replace(':', '-')}"),
      given.small,
  )
  names, seeds = _chosen(given, show.demo)
  if given.tune_grpo:
    _tune(show, seeds[0])
    return
  planned = [_Run(name, seed) for seed in seeds for name in names]
  _train_all(show, planned)
  trained = time.perf_counter()
  folders = {
      name: [show.folder(x) for x in planned if x.method == name]
      for name in names
  }
  summary = {
      _style(name)[0]: _combine([_summary(folder) for folder in places])
      for name, places in folders.items()
  }
  table = _table(summary, len(seeds))
  reporting = time.perf_counter() - trained
  summary["seconds"] = sum(_seconds(show, x) for x in planned) + reporting
  files.write_json(show.workdir / workdir_lib.SUMMARY, summary)
  timing = _time(show, folders, seeds)
  written = page.write(
      {_style(name)[1]: places for name, places in folders.items()},
      show.workdir / "report",
      title=show.demo.title,
      timing=timing,
  )
  print(f"\n{table}\n")
  if timing:
    print(comparison.table(timing))
  print(f"\nsummary  {show.workdir / workdir_lib.SUMMARY}")
  print(f"page     {written}")


def _style(method: str) -> tuple[str, str]:
  """Returns a method's key in summary.json, and its label."""
  return _STYLE.get(method, (method, method))


def _train_all(show: _Show, planned: Sequence[_Run]) -> None:
  """Trains the runs that are not finished; announces what is left."""
  steps = _configure(show, planned[-1]).num_steps
  print(
      f"demo       {len(planned)} runs of {show.name}: {planned[0].label}, then"
      f" {steps} steps of each method; each is judged on the test problems"
  )
  if not show.small:
    print(
        f"time       about {_left(show, planned):.0f} minutes on two CPU cores;"
        " to go on after an interruption, give the same command again"
    )
  for number, one in enumerate(planned, start=1):
    left = "finished before"
    if not show.is_finished(one):
      left = f"about {_left(show, planned):.0f} minutes left"
    if show.small:
      left = "small"
    where = f"{number} of {len(planned)}, {left}"
    print(f"\n== {one.label} ({where})", flush=True)
    _train(show, one)


def _left(show: _Show, planned: Sequence[_Run]) -> float:
  """Estimates the minutes that are left, from those of finished runs."""
  done = [x for x in planned if show.is_finished(x)]
  announced = sum(map(show.minutes, done))
  taken = sum(_seconds(show, x) for x in done) / 60
  waiting = sum(
      show.minutes(x) * (1 - _share_done(show, x))
      for x in planned
      if x not in done
  )
  return waiting * (taken / announced if announced else 1.0)


def _share_done(show: _Show, one: _Run) -> float:
  """Returns the share of an unfinished run's steps that are logged."""
  folder = show.folder(one)
  if not (folder / logs.METRICS).exists():
    return 0.0
  cfg, stage = _configure(show, one), "rl"
  steps = cfg.num_steps
  if one.method == _WARM_START:
    steps, stage = cfg.warm_start.num_steps, "warm_start"
  logged = logs.stage_metrics(folder, stage)
  return logged[-1]["step"] / steps if logged else 0.0


def _time(
    show: _Show,
    folders: Mapping[str, Sequence[pathlib.Path]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
  """Times the first seed's policies side by side; writes and returns that.

  Returns nothing if the demo times no policies.
  """
  problems = show.demo.timed_problems
  if not problems:
    return []
  suffix = f" (seed {seeds[0]})" if len(seeds) > 1 else ""
  contestants = comparison.load(
      [places[0] for places in folders.values()], "last"
  )
  results = comparison.judge(
      contestants, split="test", problems=problems, seeds=(0, 1, 2)
  )
  records = comparison.report(contestants, results, "test")
  for record, name in zip(records, folders, strict=True):
    record["run"] = _style(name)[1] + suffix
  comparison.write(records, show.workdir / "evaluation")
  return records


def _chosen(
    given: argparse.Namespace, demo: Demo
) -> tuple[list[str], list[int]]:
  """Returns the methods, the warm start first, and the seeds."""
  chosen = list(demo.methods) if given.methods is None else given.methods
  known = dict.fromkeys((*demo.methods, *methods.NAMES))
  for method in chosen:
    if method not in known:
      raise ConfigError(
          f"--methods = {method!r}: must be among {', '.join(known)}"
      )
  seeds = command.whole_numbers("seeds", given.seeds)
  if given.tune_grpo and not demo.grpo_rates:
    rule = "has no rates of GRPO to try; --config=arithmetic has"
    raise ConfigError(f"--tune_grpo with --config={given.config}: {rule}")
  return [_WARM_START, *dict.fromkeys(chosen)], seeds


def _tune(show: _Show, seed: int) -> None:
  """Trains GRPO at the learning rates that the demo declares."""
  planned = [_Run("grpo", seed, rate) for rate in show.demo.grpo_rates]
  _train_all(show, [_Run(_WARM_START, seed), *planned])
  rows = []
  for one in planned:
    last = logs.stage_metrics(show.folder(one), "validation")[-1]
    rows.append([f"{one.learning_rate:g}", f"{last['accuracy']:.3f}"])
  print()
  print(markdown.table(("learning rate", "validation accuracy"), rows))


def _train(show: _Show, one: _Run) -> None:
  """Trains one run of the demo; its warm start must be finished."""
  trainer.train(
      _configure(show, one),
      show.folder(one),
      # One folder for all: they share the sampler.
      programs=show.workdir / workdir_lib.PROGRAMS,
  )


def _configure(show: _Show, one: _Run) -> Config:
  """Returns the configuration of a run."""
  joined = "-" if ":" in show.name else ":"
  config = presets.load(f"{show.name}{joined}{one.method}")
  config.seed = one.seed
  if one.method != _WARM_START:
    config.warm_start.num_steps = 0
    start = _Run(_WARM_START, one.seed)
    config.init_from = str(show.folder(start))
  if one.learning_rate is not None:
    config.optimizer.learning_rate = one.learning_rate
  if show.small:
    show.demo.shrink(config)
  return parsing.parse(config)


def _combine(runs: list[dict[str, float]]) -> dict[str, float]:
  """Averages runs over seeds; standard errors of several are over seeds."""
  mean = {
      key: statistics.mean(run[key] for run in runs)
      for key, value in runs[0].items()
      # Finished runs of an older version lack some.
      if not isinstance(value, str) and all(key in run for run in runs)
  }
  mean["problems"] = runs[0]["problems"]
  mean["seconds"] = sum(run["seconds"] for run in runs)
  if len(runs) > 1:
    root = math.sqrt(len(runs))
    for key in ("accuracy", "mean_tokens"):
      spread = statistics.stdev(run[key] for run in runs)
      mean[f"{key}_se"] = spread / root
    mean["seeds"] = len(runs)
  return mean


def _table(summary: dict[str, dict[str, float]], seeds: int) -> str:
  """Formats the summary as Markdown."""
  labels = {key: key for key in summary} | dict(_STYLE.values())
  rows = []
  for key, entry in summary.items():
    tokens = f"{entry['mean_tokens']:.1f}"
    answer = entry.get("mean_answer_tokens")
    if "mean_tokens_se" in entry:
      tokens += f" ± {entry['mean_tokens_se']:.1f}"
    rows.append([
        labels[key],
        f"{entry['accuracy']:.3f} ± {entry['accuracy_se']:.3f}",
        tokens,
        f"{entry['mean_reasoning_tokens']:.1f}",
        "–" if answer is None else f"{answer:.1f}",
        f"{entry['format_rate']:.3f}",
    ])
  head = ("", "accuracy", "tokens", "reasoning", "answer", "format")
  return (
      f"Held-out problems: {next(iter(summary.values()))['problems']}, one"
      " sample each at temperature 1; standard errors over"
      f" {'problems' if seeds == 1 else f'{seeds} seeds'}.\n\n"
      + markdown.table(head, rows)
  )


def _seconds(show: _Show, one: _Run) -> float:
  """Returns the seconds that a finished run took."""
  return _summary(show.folder(one))["seconds"]


def _summary(folder: pathlib.Path) -> dict[str, Any]:
  return files.read_json(folder / workdir_lib.SUMMARY)
