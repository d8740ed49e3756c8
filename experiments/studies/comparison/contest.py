"""Tables and the figure of a comparison, made from its result file.

`compare.py` writes the result file. Replications of methods are paired: they
share the weights of the warm start, the seed and the test problems.
"""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trials
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_jax.core import intervals, markdown
from iapo_jax.core.intervals import Interval
from iapo_jax.tools.report import figures
from iapo_jax.tools.report.figures import LIGHT, colour

Found = Mapping[str, Any]
_MARKERS = "osD^vPX*<"


def methods(found: Found) -> list[str]:
  """Returns methods with two or more replications, in order of `contenders`."""
  return [
      name for name in trials.contenders()
      if len(_rows(found, name)) > 1
  ]  # fmt: skip


def values(found: Found, method: str, metric: str) -> list[float]:
  """Returns a metric of all replications of a method, by seed and start."""
  return [row[metric] for row in _rows(found, method).values()]


def _rows(found: Found, method: str) -> dict[tuple[int, int], Found]:
  """Returns the trials of a method's chosen setting, by (seed, start).

  A result file may also hold trials of a setting that was chosen earlier.
  """
  key = {"method": method, "setting": found["chosen"].get(method)}
  rows = [row for row in found["trials"] if key.items() <= row.items()]
  return {
      (row["seed"], row["start"]): row
      for row in sorted(rows, key=lambda row: (row["seed"], row["start"]))
  }


def difference(
    found: Found, ours: str, theirs: str, metric: str, *, relative: bool = False
) -> Interval | None:
  """Returns the interval of a metric of method `ours` less method `theirs`.

  It covers the replications that both have, with the same seed and starting
  weights; None if these are fewer than two. With `relative` each difference is
  divided by the value of `theirs`.
  """
  a, b = _rows(found, ours), _rows(found, theirs)
  shared = [
      key for key, row in a.items()
      if key in b and row["begun_from"] == b[key]["begun_from"]
  ]  # fmt: skip
  if len(shared) < 2:
    return None
  scale = [b[key][metric] if relative else 1.0 for key in shared]
  scaled = (
      [rows[key][metric] / by for key, by in zip(shared, scale, strict=True)]
      for rows in (a, b)
  )
  return intervals.of_difference(*scaled)


def comparison(found: Found) -> str:
  """Tabulates accuracy, tokens and the differences to GRPO by method."""
  head = [
      "", "setting", "n", "accuracy", "tokens", "accuracy − GRPO's, points",
      "tokens, % of GRPO's", "tokens sampled and probed, M",
  ]  # fmt: skip
  rows = []
  for label, starts in _warm_starts(found):
    means = [
        statistics.mean(x[name] for x in starts)
        for name in ("accuracy", "mean_tokens")
    ]
    cells = [f"{means[0]:.3f}", f"{means[1]:.1f}", "", "", ""]
    rows.append([label, "", str(len(starts)), *cells])
  for method in methods(found):
    accuracy, tokens = (
        intervals.of_mean(values(found, method, name))
        for name in ("accuracy", "mean_tokens")
    )
    setting = found["settings"][method][found["chosen"][method]]
    rows.append([
        trials.contenders()[method].label,
        _setting(setting),
        str(accuracy.count),
        _interval(accuracy, 1, 3),
        _interval(tokens, 1, 1),
        _against(found, method, "grpo", "accuracy", 100, 1),
        _shorter(found, method, "grpo"),
        f"{_trained(found, method) / 1e6:.1f}",
    ])
  return markdown.table(head, rows)


def headline(results: Mapping[str, Found]) -> str:
  """Tabulates differences to GRPO on every task, without controls.

  `results` holds result files by task. A dash stands where a task has fewer
  than two replications.
  """
  return _beside_grpo(
      results,
      [
          name
          for name, contender in trials.contenders().items()
          if not contender.beside
          and any(name in methods(found) for found in results.values())
      ],
  )


def by_start(found: Found) -> str:
  """Tabulates differences to GRPO from each warm start alone.

  A dash stands where a start has fewer than two replications.
  """
  parts = {
      f"start {start}": {
          **found,
          "trials": [x for x in found["trials"] if x["start"] == start],
      }
      for start in sorted({x["start"] for x in found["trials"]})
  }
  return _beside_grpo(parts, _paired(found))


def _paired(found: Found) -> list[str]:
  """Returns the methods that begin from the same warm starts as GRPO."""
  known = trials.contenders()
  return [name for name in methods(found) if known[name].early_answers]


def _beside_grpo(parts: Mapping[str, Found], names: Sequence[str]) -> str:
  """Tabulates differences to GRPO in every part, and GRPO's own values."""
  head = [""]
  for title, found in parts.items():
    head += [f"{title}: accuracy, points", "tokens, %"]
    head += ["checks after a slip / none"] * _has_checks(found)
  rows = []
  for name in names:
    cells = [trials.contenders()[name].label]
    for found in parts.values():
      known = {"grpo", name} <= set(methods(found))
      width = 2 + _has_checks(found)
      cells += _to_grpo(found, name) if known else ["–"] * width
    rows.append(cells)
  return markdown.table(head, rows)


def _has_checks(found: Found) -> bool:
  return all("check_after_slip" in row for row in found["trials"])


def _to_grpo(found: Found, name: str) -> list[str]:
  def mean(metric: str) -> float:
    return statistics.mean(values(found, name, metric))

  cells = [
      _against(found, name, "grpo", "accuracy", 100, 1),
      _shorter(found, name, "grpo"),
  ]
  if name == "grpo":
    accuracy, tokens = mean("accuracy"), mean("mean_tokens")
    cells = [f"{100 * accuracy:.1f} % right", f"{tokens:.1f} tokens"]
  if _has_checks(found):
    cells.append(_shares(mean))
  return cells


def _shares(mean: Callable[[str], float]) -> str:
  """Formats the percentages of slips / right results that are checked."""
  slip, none = mean("check_after_slip"), mean("check_after_none")
  return f"{100 * slip:.0f} / {100 * none:.0f} %"


def _warm_starts(found: Found) -> list[tuple[str, list[Found]]]:
  """Returns label and results of each kind of warm start in the file."""
  kinds = (
      ("warm start", True), ("warm start, no early answers", False)
  )  # fmt: skip
  pairs = [
      (label, [
          start
          for start in found["warm_starts"]
          # Older files only hold warm starts with early answers.
          if start.get("early_answers", True) == early
      ])
      for label, early in kinds
  ]
  return [(label, starts) for label, starts in pairs if starts]


def against_penalty(found: Found, penalty: str = "length_penalty") -> str:
  """Tabulates differences to the tuned length penalty."""
  head = ["", "accuracy − the penalty's, points", "tokens, % of the penalty's"]
  rows = [
      [
          trials.contenders()[method].label,
          _against(found, method, penalty, "accuracy", 100, 1),
          _shorter(found, method, penalty),
      ]
      for method in _paired(found)
      if method != penalty
  ]
  return markdown.table(head, rows)


def controls(found: Found) -> str:
  """Tabulates differences of controls and ablations to their references."""
  head = ["", "beside", "accuracy − its, points", "tokens, % of its"]
  known, rows = trials.contenders(), []
  for method, other in itertools.product(methods(found), repeat=2):
    if other not in known[method].beside:
      continue
    if difference(found, method, other, "accuracy"):  # from the same weights
      rows.append([
          known[method].label,
          known[other].label,
          _against(found, method, other, "accuracy", 100, 1),
          _shorter(found, method, other),
      ])
  return markdown.table(head, rows)


def levels(found: Found) -> str:
  """Tabulates accuracy / tokens by level, means over replications."""
  names = sorted(
      {
          name.removeprefix("accuracy/level_")
          for row in found["trials"]
          for name in row
          if name.startswith("accuracy/level_")
      },
      key=int,
  )
  rows = []
  for label, cell in _all(found):
    pairs = [
        (cell(f"accuracy/level_{n}"), cell(f"tokens/level_{n}")) for n in names
    ]
    rows.append([label, *(f"{a:.3f} / {t:.1f}" for a, t in pairs)])
  return markdown.table(["", *(f"{n} numbers" for n in names)], rows)


def checks(found: Found) -> str:
  """Tabulates how often a check follows a slip, and a right result."""
  head = ["", "after a slip", "after none", "ratio", "accuracy", "tokens"]
  rows = []
  for label, cell in _all(found):
    slip, none = cell("check_after_slip"), cell("check_after_none")
    ratio = f"{slip / none:.2f}" if none else "–"
    rows.append([
        label, f"{slip:.3f}", f"{none:.3f}", ratio, f"{cell('accuracy'):.3f}",
        f"{cell('mean_tokens'):.1f}",
    ])  # fmt: skip
  return markdown.table(head, rows)


def _all(found: Found) -> list[tuple[str, Callable[[str], float]]]:
  """Returns label and mean of any metric, of warm starts and methods."""
  sources = _warm_starts(found)
  sources += [
      (trials.contenders()[name].label, list(_rows(found, name).values()))
      for name in methods(found)
  ]

  def mean_of(rows: Sequence[Found]) -> Callable[[str], float]:
    return lambda metric: statistics.mean(row[metric] for row in rows)

  return [(label, mean_of(rows)) for label, rows in sources]


def tuning(found: Found) -> str:
  """Tabulates validation results by setting, the chosen one in bold.

  A cell holds accuracy / tokens and, for a task with slips, the percentages of
  slips / of right results that a check follows.
  """
  rows = []
  for method, settings in found["settings"].items():
    tried = [x for x in found["tuning"] if x["method"] == method]
    if method not in found["chosen"] or not tried:
      continue
    cells = []
    for i, means in enumerate(trials.means_of_settings(tried)):
      cell = f"{means['accuracy']:.3f} / {means['mean_tokens']:.1f}"
      if "check_after_slip" in means:
        cell += f", {_shares(means.__getitem__)}"
      if found["chosen"][method] == i:
        cell = f"**{cell}**"
      cells.append(f"{_setting(settings[i])}: {cell}")
    rows.append([trials.contenders()[method].label, *cells])
  return markdown.table(["", "", "", "", ""], rows)


def _trained(found: Found, method: str) -> float:
  """Returns the mean number of tokens that a run samples and probes."""
  return statistics.mean(
      row["sampled_tokens"] + row["probe_tokens"]
      for row in _rows(found, method).values()
  )


def _setting(fields: Mapping[str, float]) -> str:
  short = {
      "optimizer.learning_rate": "rate", "credit.info_weight": "w",
      "credit.explore_weight": "w_explore", "credit.discount": "γ",
      "credit.cost": "c", "credit.length_weight": "w",
  }  # fmt: skip
  return ", ".join(f"{short[name]} {v:g}" for name, v in fields.items())


def _against(
    found: Found, ours: str, theirs: str, metric: str, scale: float, digits: int
) -> str:
  if ours == theirs:
    return "–"
  interval = difference(found, ours, theirs, metric)
  return "" if interval is None else _signed(interval, scale, digits)


def _shorter(found: Found, ours: str, theirs: str) -> str:
  if ours == theirs:
    return "100"
  change = difference(found, ours, theirs, "mean_tokens", relative=True)
  if change is None:
    return ""
  ends = f"{100 + 100 * change.low:.0f} to {100 + 100 * change.high:.0f}"
  return f"{100 + 100 * change.mean:.0f} ({ends})"


def _interval(x: Interval, scale: float, digits: int) -> str:
  half = scale * (x.high - x.mean)
  return f"{scale * x.mean:.{digits}f} ± {half:.{digits}f}"


def _signed(x: Interval, scale: float, digits: int) -> str:
  mean, low, high = (scale * v for v in (x.mean, x.low, x.high))
  return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def draw(found: Found) -> Figure:
  """Draws accuracy against tokens, for methods from the same warm starts.

  Left: means on test problems with 95 % intervals. A line joins the methods on
  the Pareto front; controls have hollow markers. Right: validation means of
  each method's settings, joined in order of tokens. Both share the accuracy
  axis, which extends below the left points by half their range.
  """
  figure = Figure(figsize=(10.4, 5.6), layout="constrained")
  tested, tried = figure.subplots(1, 2, sharey=True)
  styles = {
      method: {
          "color": colour(i, LIGHT),
          "marker": _MARKERS[i % len(_MARKERS)],
          "fillstyle": "none" if trials.contenders()[method].beside else "full",
      }
      for i, method in enumerate(_paired(found))
  }
  _draw_tested(tested, found, styles)
  bottom, top = tested.get_ylim()
  _draw_tried(tried, found, styles)
  # Room for weaker settings; collapsed ones appear in the table only.
  tested.set_ylim(bottom - (top - bottom) / 2, top)
  if styles:
    figure.legend(
        *tested.get_legend_handles_labels(), loc="outside lower center",
        ncols=4, frameon=False, labelcolor=LIGHT.ink,
    )  # fmt: skip
  tested.set(
      xlabel="tokens per completion", ylabel="share correct",
      title=f"{found['task']}: test problems, mean and 95 % interval",
  )  # fmt: skip
  tried.set(
      xlabel="tokens per completion",
      title="validation problems: settings tried, as far as in view",
  )
  figures.dress(tested)
  figures.dress(tried)
  return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
  """Returns the indices of the (accuracy, tokens) on the Pareto front.

  More accuracy and fewer tokens are better. Equal points do not beat each
  other.
  """

  def beaten(i: int) -> bool:
    accuracy, tokens = points[i]
    return any(
        a >= accuracy and t <= tokens and (a, t) != (accuracy, tokens)
        for a, t in points
    )

  return [i for i in range(len(points)) if not beaten(i)]


def _draw_tested(
    axes: Axes, found: Found, styles: Mapping[str, Mapping[str, Any]]
) -> None:
  """Draws the mean of each method with its interval, and the front."""
  points = []
  for method, style in styles.items():
    accuracy, tokens = (
        intervals.of_mean(values(found, method, name))
        for name in ("accuracy", "mean_tokens")
    )
    points.append((accuracy.mean, tokens.mean))
    axes.errorbar(
        tokens.mean, accuracy.mean, xerr=tokens.high - tokens.mean,
        yerr=accuracy.high - accuracy.mean, linestyle="none", capsize=3,
        markersize=7, label=trials.contenders()[method].label, **style,
    )  # fmt: skip
  front = sorted((points[i][1], points[i][0]) for i in pareto(points))
  if front:
    axes.plot(
        *zip(*front, strict=True), color=LIGHT.faint, linewidth=1, zorder=0
    )


def _draw_tried(
    axes: Axes, found: Found, styles: Mapping[str, Mapping[str, Any]]
) -> None:
  """Draws the validation means of the settings of each method."""
  for method, style in styles.items():
    rows = [x for x in found["tuning"] if x["method"] == method]
    if rows:
      means = sorted(
          (x["mean_tokens"], x["accuracy"])
          for x in trials.means_of_settings(rows)
      )
      axes.plot(
          *zip(*means, strict=True), linewidth=1, markersize=5, alpha=0.8,
          **style,
      )  # fmt: skip
