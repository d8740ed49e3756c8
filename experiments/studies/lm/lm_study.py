"""Compares methods on a pretrained language model: runs, results, table.

  python experiments/studies/lm/lm_study.py
  python experiments/studies/lm/lm_study.py --collect_only

Trains every method of `METHODS` from each of several warm starts with each of
several seeds, all with the settings of `configs/smollm2.py`, which are not
tuned. Each policy is judged on the test problems. Then its probes are measured
on rollouts: `calibration_gap` of docs/metrics.md, in a step with learning rate
0, since methods that credit no information run no probes in training.

A run is an ordinary run in a folder under --workdir, and an interrupted one
goes on. Results are added to --output, docs/evidence/lm.json by default, and
the table to docs/lm.md. Runs in that file are not run again; the checkpoints of
a finished run are deleted, but not those of a warm start.
"""

import dataclasses
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from iapo_jax.cli import command
from iapo_jax.config import demos, parsing, presets
from iapo_jax.core import files, intervals, markdown
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import logs, trainer
from iapo_jax.run import workdir as workdir_lib

METHODS = {
    "grpo": "GRPO",
    "length_penalty": "length penalty",
    "to_go": "IAPO to_go",
    "chance": "chance of the gold answer, priced",
}
_ROOT = pathlib.Path(__file__).parents[3]
_WARM_START = "sft"
_GAP = "probe/calibration_gap"
_CONFIG = flags.DEFINE_string("config", "smollm2:legs", "NAME:TASK.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/lm_study", "Folder of all runs."
)
OUTPUT = str(_ROOT / "docs/evidence/lm.json")
_OUTPUT = flags.DEFINE_string("output", OUTPUT, "Result file.")
_PAGE = flags.DEFINE_string(
    "page", str(_ROOT / "docs/lm.md"), "Page with the table; empty for none."
)
_STARTS = flags.DEFINE_integer("starts", 2, "Warm starts.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs by method and warm start.")
_COLLECT = flags.DEFINE_bool("collect_only", False, "Run nothing.")
_SMALL = flags.DEFINE_bool("small", False, "Tiny runs, as a check.")

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of a method from a warm start (a seed), or a warm start itself."""

  method: str
  start: int
  seed: int

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the run in that of all runs."""
    place = pathlib.Path(f"start-{self.start}") / self.method
    return place if self.method == _WARM_START else place / f"seed-{self.seed}"


def main(_: list[str]) -> None:
  """Runs what is missing, and writes results as they come."""
  output, workdir = pathlib.Path(_OUTPUT.value), pathlib.Path(_WORKDIR.value)
  name = f"{_CONFIG.value} (small)" if _SMALL.value else _CONFIG.value
  found = _recorded(output, name)
  done = {Trial(x["method"], x["start"], x["seed"]) for x in found}
  waiting = [] if _COLLECT.value else plan(_STARTS.value, _SEEDS.value)
  waiting = [trial for trial in waiting if trial not in done]
  for number, trial in enumerate(waiting, start=1):
    print(f"\n== {number} of {len(waiting)}: {trial.folder}", flush=True)
    found = [*found, _run(trial, workdir)]
    files.write_json(output, {"config": name, "trials": found})
    _clean(trial, workdir)
    if _PAGE.value:
      fill(pathlib.Path(_PAGE.value), found)
  print(f"\n{table(found)}\n\n{len(found)} runs in {output}")
  if _PAGE.value:
    fill(pathlib.Path(_PAGE.value), found)


def _recorded(output: pathlib.Path, name: str) -> list[Record]:
  """Returns the runs in the result file, which must be of this study."""
  if _SMALL.value and (_PAGE.value or output == pathlib.Path(OUTPUT)):
    rule = "needs --output=FILE and --page=, so that the results are kept"
    raise ConfigError(f"--small: {rule}")
  if not output.exists():
    return []
  kept = files.read_json(output)
  if kept["config"] != name:
    raise ConfigError(
        f"--output = {str(output)!r}: has results of {kept['config']}, not of"
        f" {name}; name another file, and another --workdir and --page"
    )
  return kept["trials"]


def plan(starts: int, seeds: int) -> list[Trial]:
  """Returns all runs: seed by seed, so that methods stay comparable.

  A warm start comes before the first run from it.
  """
  planned: dict[Trial, None] = {}
  for seed in range(seeds):
    for start in range(starts):
      planned[Trial(_WARM_START, start, start)] = None
      planned |= dict.fromkeys(Trial(m, start, seed) for m in METHODS)
  return list(planned)


def _run(trial: Trial, workdir: pathlib.Path) -> Record:
  """Trains a policy, measures its probes and returns its record."""
  folder = workdir / trial.folder
  start = workdir / Trial(_WARM_START, trial.start, trial.start).folder
  programs = workdir / workdir_lib.PROGRAMS
  trainer.train(
      parsing.parse(_configure(trial, start)), folder, programs=programs
  )
  measured = _measured(folder)
  trainer.train(
      parsing.parse(_measuring(folder)), measured, programs=programs
  )
  (probes,) = logs.stage_metrics(measured, "rl")
  summary = files.read_json(folder / workdir_lib.SUMMARY)
  names = (
      "accuracy", "mean_tokens", "mean_reasoning_tokens", "mean_answer_tokens",
      "format_rate", "cut_rate", "problems", "seconds",
  )  # fmt: skip
  return {
      **dataclasses.asdict(trial),
      **{name: summary[name] for name in names},
      "calibration_gap": probes[_GAP],
  }


def _measured(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the run that measures the probes of another."""
  return folder.with_name(f"{folder.name}-probes")


def _clean(trial: Trial, workdir: pathlib.Path) -> None:
  """Deletes the checkpoints of a recorded run that nothing begins from."""
  folder = workdir / trial.folder
  places = [_measured(folder)]
  if trial.method != _WARM_START:
    places.append(folder)
  for place in places:
    shutil.rmtree(place / "checkpoints", ignore_errors=True)


def _configure(trial: Trial, start: pathlib.Path) -> ml_collections.ConfigDict:
  config = presets.load(f"{_CONFIG.value}-{trial.method}")
  # The warm start's seed draws other examples; a run's, other prompts.
  config.seed = trial.start if trial.method == _WARM_START else (
      1000 * (trial.start + 1) + trial.seed
  )  # fmt: skip
  if trial.method != _WARM_START:
    config.warm_start.num_steps = 0
    config.init_from = str(start)
  return _sized(config)


def _measuring(run: pathlib.Path) -> ml_collections.ConfigDict:
  """Returns a run of one step that changes nothing but has probes."""
  config = presets.load(f"{_CONFIG.value}-to_go")
  config.warm_start.num_steps = 0
  config.init_from = str(run)
  config.num_steps = 1
  config.prompts_per_step = 8
  config.optimizer.update({"learning_rate": 0.0, "warmup_steps": 0})
  config.evaluation.every = 0
  made = config.data.task == "reasoning_gym"
  # Its own evaluation is not used.
  (config.data.gym if made else config.data).test_problems = 4
  config = _sized(config)
  config.num_steps = 1
  return config


def _sized(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes a run tiny with --small."""
  if _SMALL.value:
    demos.read(_CONFIG.value.partition(":")[0]).shrink(config)
  return config


def table(found: Sequence[Record]) -> str:
  """Tabulates means and differences to GRPO, of all starts and of each.

  Differences are paired: both runs share the warm start and the seed.
  """
  head = [
      "from", "method", "runs", "accuracy", "tokens", "after the thinking",
      "format", "calibration gap, nats", "accuracy − GRPO's, points",
      "tokens, % of GRPO's",
  ]  # fmt: skip
  starts = sorted({x["start"] for x in found})
  groups = [("all", starts)] if len(starts) > 1 else []
  groups += [(f"start {start}", [start]) for start in starts]
  rows = []
  for label, chosen in groups:
    here = [x for x in found if x["start"] in chosen]
    for method, name in ({_WARM_START: "warm start"} | METHODS).items():
      mine = [x for x in here if x["method"] == method]
      if mine:
        rows.append([label, name, str(len(mine)), *_cells(mine, here)])
  return markdown.table(head, rows)


def _cells(mine: Sequence[Record], here: Sequence[Record]) -> list[str]:
  """Returns means of some runs, and their differences to GRPO's."""
  plain = {
      (x["start"], x["seed"]): x for x in here if x["method"] == "grpo"
  }
  pairs = [
      (x, plain[x["start"], x["seed"]])
      for x in mine
      if x["method"] not in (_WARM_START, "grpo")
      and (x["start"], x["seed"]) in plain
  ]
  points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
  shares = [100 * a["mean_tokens"] / b["mean_tokens"] for a, b in pairs]
  shown = {
      "accuracy": ".3f",
      "mean_tokens": ".1f",
      "mean_answer_tokens": ".1f",
      "format_rate": ".2f",
      "calibration_gap": ".2f",
  }
  return [
      *(
          _interval([x[name] for x in mine], form)
          for name, form in shown.items()
      ),
      _interval(points, "+.1f"),
      _interval(shares, ".0f"),
  ]


def _interval(values: Sequence[float], form: str) -> str:
  """Formats a mean, with its 95 % interval if there are several values."""
  if not values:
    return ""
  if len(values) == 1:
    return format(values[0], form)
  found = intervals.of_mean(values)
  return (
      f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
  )


def fill(page: pathlib.Path, found: Sequence[Record]) -> None:
  """Replaces the text between the marks `<!-- results -->` of a page."""
  mark = "<!-- results -->"
  text = page.read_text(encoding="utf-8")
  between = re.compile(f"{mark}.*{mark}", re.DOTALL)
  written = f"{mark}\n\n{table(found)}\n\n{mark}"
  files.write_text(page, between.sub(lambda _: written, text))


if __name__ == "__main__":
  command.run(main)
