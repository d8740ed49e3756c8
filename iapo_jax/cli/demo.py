r"""Trains one warm start, then GRPO, IAPO `paper` and IAPO `to_go` from it.

  iapo demo                     # what `make demo` runs
  iapo demo --seeds=0,1,2 --methods=grpo,paper,to_go,shuffled,length_penalty
  iapo demo --tune_grpo

Every method starts from the same checkpoint and has the same budget. Each is
evaluated on the held-out test problems, one completion each, sampled at
temperature 1. The page at the end compares them. The same command skips
finished runs and continues interrupted ones; delete the folder to start over.
"""

import argparse
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from iapo_jax.cli import command
from iapo_jax.config import parsing, presets
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
}
_TIMED_PROBLEMS = 1024


def add_arguments(parser: command.Parser) -> None:
  """Adds the arguments of the command."""
  add = parser.add_argument
  add("--workdir", default="runs/demo", help="folder of the demo")
  add(
      "--seeds",
      default=["0"],
      type=command.words,
      help="seeds; each repeats the whole demo",
  )
  add(
      "--methods",
      default=["grpo", "paper", "to_go"],
      type=command.words,
      help="methods to train; also faithful, and the controls shuffled and"
      " length_penalty",
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


def run(given: argparse.Namespace) -> None:
  """Trains what is not trained yet, then reports."""
  start = time.perf_counter()
  workdir = pathlib.Path(given.workdir)
  methods, seeds = _chosen(given)
  train = functools.partial(
      _train, programs=workdir / workdir_lib.PROGRAMS, small=given.small
  )
  if given.tune_grpo:
    _tune(train, workdir, seeds[0])
    return
  folders, reused = {}, 0.0
  for seed in seeds:
    for method in methods:
      folder = workdir / f"seed-{seed}" / method
      folders[method, seed] = folder
      if (folder / workdir_lib.SUMMARY).exists():
        reused += _summary(folder)["seconds"]
      train(method, seed, folders)
  summary = {
      _STYLE[method][0]: _combine([
          _summary(folders[method, seed]) for seed in seeds
      ])
      for method in methods
  }
  table = _table(summary, len(seeds))
  # Time of this call, plus that of runs that were finished before.
  summary["seconds"] = time.perf_counter() - start + reused
  files.write_json(workdir / workdir_lib.SUMMARY, summary)
  timing = _time(workdir, folders, methods, seeds)
  written = page.write(
      {
          _STYLE[method][1]: [folders[method, seed] for seed in seeds]
          for method in methods
      },
      workdir / "report",
      title="The demo: one warm start, then reinforcement learning",
      timing=timing,
  )
  print(f"\n{table}\n")
  print(comparison.table(timing))
  print(f"\nsummary  {workdir / workdir_lib.SUMMARY}")
  print(f"page     {written}")


def _time(
    workdir: pathlib.Path,
    folders: dict[tuple[str, int], pathlib.Path],
    methods: list[str],
    seeds: list[int],
) -> list[dict[str, Any]]:
  """Times the first seed's policies side by side; writes and returns that."""
  seed = seeds[0]
  suffix = f" (seed {seed})" if len(seeds) > 1 else ""
  contestants = comparison.load(
      [folders[method, seed] for method in methods], "last"
  )
  results = comparison.judge(
      contestants, split="test", problems=_TIMED_PROBLEMS, seeds=(0, 1, 2)
  )
  records = comparison.report(contestants, results, "test")
  for record, method in zip(records, methods, strict=True):
    record["run"] = _STYLE[method][1] + suffix
  comparison.write(records, workdir / "evaluation")
  return records


def _chosen(given: argparse.Namespace) -> tuple[list[str], list[int]]:
  """Returns the methods, the warm start first, and the seeds."""
  known = [name for name in _STYLE if name != "sft"]
  for method in given.methods:
    if method not in known:
      raise ConfigError(
          f"--methods = {method!r}: must be among {', '.join(known)}"
      )
  seeds = command.whole_numbers("seeds", given.seeds)
  return ["sft", *dict.fromkeys(given.methods)], seeds


def _tune(
    train: Callable[..., None], workdir: pathlib.Path, seed: int
) -> None:
  """Trains GRPO at the learning rates that the configuration declares."""
  folders = {("sft", seed): workdir / f"seed-{seed}" / "sft"}
  train("sft", seed, folders)
  rows = []
  for rate in presets.read("arithmetic")["GRPO_LEARNING_RATES"]:
    folders["grpo", seed] = workdir / f"seed-{seed}" / f"grpo-{rate:g}"
    train("grpo", seed, folders, learning_rate=rate)
    last = logs.stage_metrics(folders["grpo", seed], "validation")[-1]
    rows.append([f"{rate:g}", f"{last['accuracy']:.3f}"])
  print()
  print(markdown.table(("learning rate", "validation accuracy"), rows))


def _train(
    method: str,
    seed: int,
    folders: dict[tuple[str, int], pathlib.Path],
    *,
    programs: pathlib.Path,
    small: bool,
    learning_rate: float | None = None,
) -> None:
  """Trains one run of the demo; its warm start must be finished."""
  config = presets.read("arithmetic")["get_config"](method)
  config.seed = seed
  if method != "sft":
    config.warm_start.num_steps = 0
    config.init_from = str(folders["sft", seed])
  if learning_rate is not None:
    config.optimizer.learning_rate = learning_rate
  if small:
    config.warm_start.num_steps = min(config.warm_start.num_steps, 4)
    config.num_steps = min(config.num_steps, 2)
    config.data.arithmetic.update({
        "operands": 3, "train_problems": 64, "test_problems": 64,
    })  # fmt: skip
    config.rollout.max_tokens = 56
    config.evaluation.update({"problems": 64, "batch_size": 64})
    config.model.update({"d_model": 32, "mlp_dim": 64})
  print(f"\n== {_STYLE[method][1]}, seed {seed}", flush=True)
  trainer.train(
      parsing.parse(config),
      folders[method, seed],
      programs=programs,  # one folder for all: they share the sampler
  )


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
  labels = dict(_STYLE.values())
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


def _summary(folder: pathlib.Path) -> dict[str, Any]:
  return files.read_json(folder / workdir_lib.SUMMARY)
