"""Compares early-exit probes with the truth, where it is known.

  python experiments/studies/oracle/oracle.py
  python experiments/studies/oracle/oracle.py --run=runs/demo/seed-0/sft

First, policies of seven words whose completions can all be enumerated
(`oracle_policies.py`): untrained ones, and ones that saw few or many early
answers in their supervised stage. The functions of training sample, grade and
probe them. The results are compared with a second encoding and with the answers
that the policy really ends with. Then the demo's policy, whose final answers
are counted over continuations.

Writes oracle.json and oracle.svg to --output; docs/evidence/oracle.md explains
them. Takes six minutes on two busy CPU cores; the warm start of the demo takes
more than two of them.
"""

import pathlib
import time
from typing import Any

import numpy as np
import oracle_demo
import oracle_measures
import oracle_policies
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from oracle_measures import ESTIMATORS
from oracle_policies import KINDS

from iapo_jax.cli import command
from iapo_jax.config import parsing as config_lib
from iapo_jax.config import presets
from iapo_jax.core import files, intervals, markdown
from iapo_jax.core.errors import ConfigError
from iapo_jax.run import trainer
from iapo_jax.run import workdir as workdir_lib
from iapo_jax.tools.report import figures
from iapo_jax.tools.report.figures import LIGHT, colour

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write to; docs/evidence by default."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Of each policy.", lower_bound=2)
_STEPS = flags.DEFINE_integer(
    "steps", 300, "Training steps of small policies.", lower_bound=1
)
_ROWS = flags.DEFINE_integer(
    "rows", 512, "Completions of each prompt.", lower_bound=1
)
_RUN = flags.DEFINE_string(
    "run", None, "Folder of a finished run of the demo; by default a new run."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/oracle", "Folder of the new run."
)
_DEMO_STEPS = flags.DEFINE_integer(
    "demo_steps", 300, "Steps of its warm start.", lower_bound=1
)
_PROBLEMS = flags.DEFINE_integer(
    "problems", 128, "Problems whose reasoning is cut.", lower_bound=2
)
_CONTINUATIONS = flags.DEFINE_integer(
    "continuations", 64, "Continuations of each cut reasoning.", lower_bound=2
)
_SMALL = flags.DEFINE_bool(
    "small", False, "Tiny sizes, to check that the study works."
)

# Shares of early answers in the supervised stage; None skips the stage.
SHARES = {
    "random": None, "0": 0.0, "0.05": 0.05, "0.25": 0.25, "0.5": 0.5,
}  # fmt: skip


def main(_: list[str]) -> None:
  """Runs the study and writes its results."""
  start = time.perf_counter()
  if _SMALL.value and not _OUTPUT.value:
    raise ConfigError("--small: needs --output, so that docs/evidence is kept")
  folder = pathlib.Path(_OUTPUT.value or "docs/evidence")
  folder.mkdir(parents=True, exist_ok=True)
  records = small_policies()
  run = pathlib.Path(_RUN.value) if _RUN.value else _train_demo()
  demo = oracle_demo.study(
      run,
      *(4, 8) if _SMALL.value else (_PROBLEMS.value, _CONTINUATIONS.value),
      seed=0,
  )
  settings = {
      flag.name: flag.value
      for flag in (
          _SEEDS, _STEPS, _ROWS, _DEMO_STEPS, _PROBLEMS, _CONTINUATIONS,
      )
  }  # fmt: skip
  found = _short({"settings": settings, "policies": records, "demo": demo})
  files.write_json(folder / "oracle.json", found)
  figures.save(draw(found), folder / "oracle.svg")
  print(report(found))
  print(f"seconds  {time.perf_counter() - start:.0f}")
  print(f"written  {folder / 'oracle.json'}, {folder / 'oracle.svg'}")


def small_policies() -> list[dict[str, Any]]:
  """Returns a record of every policy that can be enumerated."""
  seeds, steps, rows = _SEEDS.value, _STEPS.value, _ROWS.value
  if _SMALL.value:
    seeds, steps, rows = 2, 2, 4
  shares = dict(list(SHARES.items())[:2]) if _SMALL.value else SHARES
  cfg = oracle_policies.config_of(rows)
  records = []
  for kind in KINDS:
    ends = oracle_measures.ends_of(kind)
    for name, share in shares.items():
      for seed in range(seeds):
        params = oracle_policies.random_policy(seed, cfg)
        if share is not None:
          params = oracle_policies.trained_policy(
              seed, kind, share, cfg, steps
          )
        measured = oracle_measures.measure(params, kind, ends, seed, cfg=cfg)
        where = {"answers": kind.name, "early": name, "seed": seed}
        records.append(where | measured)
        print(
            f"{kind.name}, early answers {name}, seed {seed}: probes within"
            f" {measured['largest_difference']:.1e} of a second encoding, gap"
            f" {measured['gap']['kl_whole']:.3f}",
            flush=True,
        )
  return records


def _train_demo() -> pathlib.Path:
  """Trains a shorter warm start of the demo, unless it is finished."""
  config = presets.read("arithmetic")["get_config"]("sft")
  config.warm_start.num_steps = 2 if _SMALL.value else _DEMO_STEPS.value
  config.data.arithmetic.test_problems = 256
  folder = pathlib.Path(_WORKDIR.value)
  trainer.train(
      config_lib.parse(config), folder, programs=folder / workdir_lib.PROGRAMS
  )
  return folder


def _short(value: Any) -> Any:
  """Rounds numbers to four digits and converts arrays for JSON."""
  if isinstance(value, dict):
    return {name: _short(x) for name, x in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [_short(x) for x in value]
  if isinstance(value, float | np.floating):
    return float(f"{value:.4g}")
  return value


def chosen(
    found: dict[str, Any], answers: str, early: str
) -> list[dict[str, Any]]:
  """Returns the records of all seeds of one kind and share."""
  return [
      record
      for record in found["policies"]
      if (record["answers"], record["early"]) == (answers, early)
  ]


def over_seeds(
    found: dict[str, Any], answers: str, early: str, estimator: str, what: str
) -> list[float]:
  """Returns [mean, low, high] of an estimator's number over seeds."""
  values = [
      record["estimators"][estimator][what]
      for record in chosen(found, answers, early)
  ]
  interval = intervals.of_mean(values)
  return [interval.mean, interval.low, interval.high]


def _columns(found: dict[str, Any]) -> list[str]:
  return list(dict.fromkeys(x["early"] for x in found["policies"]))


def table(found: dict[str, Any], answers: str, what: str) -> str:
  """Tabulates estimators by share of early answers, means over seeds."""
  columns = _columns(found)
  rows = []
  for name in ESTIMATORS:
    cells = [over_seeds(found, answers, c, name, what) for c in columns]
    tokens = over_seeds(found, answers, columns[-1], name, "probe_tokens")[0]
    half = [
        f"{mean:+.3f} ± {high - mean:.3f}" for mean, _, high in cells
    ]
    rows.append([name, *half, f"{tokens:.1f}"])
  return markdown.table(["", *columns, "probe tokens"], rows)


_GAPS = {
    "kl_first": "KL, first token",
    "kl_whole": "KL, whole answer",
    "kl_one_layer": "KL, one layer",
    "entropy_whole": "H elicited − H final",
    "no_answer": "no answer at all",
}


def gap_table(found: dict[str, Any], answers: str) -> str:
  """Tabulates gaps by share of early answers, means over seeds."""
  columns = _columns(found)
  rows = []
  for name, label in _GAPS.items():
    cells = [
        np.mean([x["gap"][name] for x in chosen(found, answers, column)])
        for column in columns
    ]
    rows.append([label, *(f"{cell:.3f}" for cell in cells)])
  cells = [
      np.mean([
          np.sum(x["expected_information"])
          for x in chosen(found, answers, column)
      ])
      for column in columns
  ]
  label = "expected MI of a completion"
  rows.append([label, *(f"{cell:.3f}" for cell in cells)])
  return markdown.table(["", *columns], rows)


def demo_table(found: dict[str, Any]) -> str:
  """Tabulates estimators of the demo's policy with 95 % intervals."""
  head = ("", "D", "true", "bias", "rank correlation", "probe tokens")
  rows = []
  for name, row in found["demo"]["estimators"].items():
    cells = [
        "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[what])
        for what in ("bias", "correlation")
    ]
    means = [f"{row[what][0]:+.3f}" for what in ("information", "true")]
    rows.append([name, *means, *cells, f"{row['probe_tokens']:.0f}"])
  return markdown.table(head, rows)


_DEMO_GAPS = {
    "kl_first": "KL",
    "kl_one_layer": "KL, one layer",
    "elicited_entropy_first": "H elicited",
    "final_entropy": "H final",
    "entropy_first": "H elicited − H final",
    "no_answer": "no answer at all",
}


def demo_gap_table(found: dict[str, Any]) -> str:
  """Tabulates gaps of the demo's policy with 95 % intervals."""
  gap = found["demo"]["gap"]
  rows = []
  for name, label in _DEMO_GAPS.items():
    mean, low, high = gap[name]
    rows.append([label, f"{mean:.3f}", f"[{low:.3f}, {high:.3f}]"])
  return markdown.table(("", "mean", "95 % interval"), rows)


def report(found: dict[str, Any]) -> str:
  """Returns all tables with their titles."""
  parts = []
  for kind in KINDS:
    parts += [
        f"\n{kind.name}: bias",
        table(found, kind.name, "bias"),
        f"\n{kind.name}: rank correlation",
        table(found, kind.name, "correlation"),
        f"\n{kind.name}: gaps",
        gap_table(found, kind.name),
    ]
  parts += ["\ndemo", demo_table(found), "", demo_gap_table(found)]
  return "\n".join(parts)


def draw(found: dict[str, Any]) -> Figure:
  """Draws bias and rank correlation by early answers, and of the demo."""
  figure = Figure(figsize=(13.5, 7.6), layout="constrained")
  axes = figure.subplots(2, 3, width_ratios=(1, 1, 1.1))
  labels = {
      "bias": "bias (nats per token)",
      "correlation": "rank correlation with the truth",
  }
  for row, (what, label) in enumerate(labels.items()):
    for column, kind in enumerate(KINDS):
      _over_shares(axes[row, column], found, kind.name, what)
      axes[row, column].set(ylabel=label, title=f"answers of {kind.name}")
    _of_demo(axes[row, 2], found["demo"], what)
    axes[row, 2].set(xlabel=label, title="the demo's policy, 95 % intervals")
  for one in axes.flat:
    figures.dress(one)
  figure.legend(
      *axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
      ncols=7, frameon=False, labelcolor=LIGHT.ink,
  )  # fmt: skip
  return figure


def _over_shares(
    axes: Axes, found: dict[str, Any], answers: str, what: str
) -> None:
  columns = _columns(found)
  for i, name in enumerate(ESTIMATORS):
    cells = np.array([
        over_seeds(found, answers, column, name, what) for column in columns
    ])
    # A small shift keeps markers from hiding each other.
    at = np.arange(len(columns)) + 0.06 * (i - 3)
    axes.errorbar(
        at, cells[:, 0], yerr=np.abs(cells[:, 1:] - cells[:, :1]).T,
        color=colour(i, LIGHT), marker="osD^vPX"[i], markersize=5,
        linewidth=1.4, elinewidth=0.8, label=name,
    )  # fmt: skip
  axes.set_xticks(range(len(columns)), columns)
  axes.set_xlabel("share of early answers in the supervised stage")
  if what == "bias":
    axes.set_yscale("symlog", linthresh=0.1)
  else:
    axes.set_ylim(-1.05, 1.05)  # intervals may extend beyond it
  axes.axhline(0, color=LIGHT.faint, linewidth=1)


def _of_demo(axes: Axes, demo: dict[str, Any], what: str) -> None:
  for i, name in enumerate(ESTIMATORS):
    mean, low, high = demo["estimators"][name][what]
    axes.errorbar(
        mean, -i, xerr=[[mean - low], [high - mean]], color=colour(i, LIGHT),
        marker="osD^vPX"[i], markersize=7, capsize=3,
    )  # fmt: skip
  axes.set_yticks([-i for i in range(len(ESTIMATORS))], list(ESTIMATORS))
  axes.axvline(0, color=LIGHT.faint, linewidth=1)


if __name__ == "__main__":
  command.run(main)
