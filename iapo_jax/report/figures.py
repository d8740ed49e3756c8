"""The page's pictures: drawn once in light, once in dark, and as PNG."""

import base64
import dataclasses
import io
import pathlib
import statistics
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iapo_jax.report import runs
from iapo_jax.report.runs import Group

Curves = Sequence[Sequence[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class Theme:
  """Colours that differ between light and dark.

  Attributes:
    ink: of text and axes.
    faint: of the grid, and of what is there for comparison.
    colours: of the groups, told apart by colour-blind readers too.
  """

  ink: str
  faint: str
  colours: tuple[str, ...]


LIGHT = Theme(
    "#1c2430",
    "#8a94a3",
    ("#5b6573", "#0072b2", "#b35900", "#00795a", "#a3427f", "#1f7fb5",
     "#c0392b"),
)  # fmt: skip
DARK = Theme(
    "#e6e9ee",
    "#8f99a8",
    ("#aeb7c4", "#56b4e9", "#e69f00", "#2fc79b", "#e08fc0", "#8ecae6",
     "#ff8a75"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure of the page.

  Attributes:
    name: of its PNG file.
    title: above it.
    text: what it shows, for those who do not see it.
    light: a data URI.
    dark: a data URI.
    png: the bytes of the PNG.
  """

  name: str
  title: str
  text: str
  light: str
  dark: str
  png: bytes


Draw = Callable[[Axes, Theme], None]


def all_of(groups: Sequence[Group]) -> list[Picture]:
  """Every figure that the runs have data for.

  Args:
    groups: of runs; their colours follow their order.

  Returns:
    The pictures, the telling ones first.
  """
  pictures = []
  if any(group.finished("accuracy") for group in groups):
    pictures.append(_trade_off(groups))
  for metric, stage, title, unit in (
      ("accuracy", "validation", "Accuracy", "share correct"),
      ("mean_tokens", "validation", "Length", "tokens per completion"),
      ("probe/entropy_first", "rl", "Uncertainty before reasoning",
       "H₀ (nats)"),
      ("probe/entropy_last", "rl", "Uncertainty after reasoning",
       "H at the end (nats)"),
      ("sft/nll", "warm_start", "Warm start", "−log-likelihood (nats/token)"),
  ):  # fmt: skip
    if any(group.curve(stage, metric) for group in groups):
      pictures.append(_over_steps(groups, stage, metric, title, unit))
  for index, group in enumerate(groups):
    lengths = runs.before_and_after(group)
    if lengths:
      pictures.append(_histogram(index, group, *lengths))
  return pictures


def _trade_off(groups: Sequence[Group]) -> Picture:
  """Accuracy against tokens on the test split, a point a group."""
  points = [
      (i, group, runs.mean_and_error(group, "mean_tokens"),
       runs.mean_and_error(group, "accuracy"))
      for i, group in enumerate(groups)
      if group.finished("accuracy")
  ]  # fmt: skip

  def draw(axes: Axes, theme: Theme) -> None:
    for i, group, tokens, accuracy in points:
      axes.errorbar(
          tokens[0],
          accuracy[0],
          xerr=tokens[1] or 0,
          yerr=accuracy[1] or 0,
          fmt="o",
          markersize=8,
          color=theme.colours[i % len(theme.colours)],
          label=_plain(group.label),
          capsize=3,
      )
    axes.set(xlabel="tokens per completion", ylabel="share correct")
    axes.set_xlim(0, 1.1 * max(tokens[0] for _, _, tokens, _ in points))
    axes.margins(y=0.25)

  told = "; ".join(
      f"{group.label}: {accuracy[0]:.3f} in {tokens[0]:.1f} tokens"
      for _, group, tokens, accuracy in points
  )
  return _render("trade_off", "Test problems: accuracy and length", told, draw)


def _over_steps(
    groups: Sequence[Group], stage: str, metric: str, title: str, unit: str
) -> Picture:
  def draw(axes: Axes, theme: Theme) -> None:
    for i, group in enumerate(groups):
      curves = group.curve(stage, metric)
      if curves:
        colour = theme.colours[i % len(theme.colours)]
        label = _plain(group.label)
        axes.plot(*_mean_curve(curves), color=colour, linewidth=2, label=label)
        if len(curves) > 1:
          for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7,
                      alpha=0.45)  # fmt: skip
    name = "step of the warm start" if stage == "warm_start" else "RL step"
    axes.set(xlabel=name, ylabel=unit)
    if metric != "accuracy":
      axes.set_ylim(bottom=0)

  told = []
  for group in groups:
    curves = group.curve(stage, metric)
    if curves:
      _, mean = _mean_curve(curves)
      if not mean:
        continue
      told.append(f"{group.label}: from {mean[0]:.3g} to {mean[-1]:.3g}")
  split = " (validation)" if stage == "validation" else ""
  text = f"{unit} over steps; " + "; ".join(told)
  return _render(f"{stage}_{metric}", title + split, text, draw)


def _mean_curve(curves: Curves) -> tuple[list[int], list[float]]:
  """The mean over runs, at the steps that all of them have."""
  tables = [dict(curve) for curve in curves]
  steps = sorted(set.intersection(*(set(table) for table in tables)))
  return steps, [statistics.mean(t[step] for t in tables) for step in steps]


def _histogram(
    index: int, group: Group, before: list[int], after: list[int]
) -> Picture:
  width = max(1, round(max(before + after) / 30))
  edges = list(range(0, max(before + after) + 2 * width, width))

  def draw(axes: Axes, theme: Theme) -> None:
    share = [100 / len(before)] * len(before)
    axes.hist(
        before,
        edges,
        weights=share,
        color=theme.faint,
        alpha=0.45,
        label=f"before: mean {statistics.mean(before):.1f}",
    )
    axes.hist(
        after,
        edges,
        weights=[100 / len(after)] * len(after),
        histtype="step",
        linewidth=2,
        color=theme.colours[index % len(theme.colours)],
        label=f"after: mean {statistics.mean(after):.1f}",
    )
    axes.set(xlabel="tokens per completion", ylabel="% of completions")
    axes.margins(y=0.2)

  told = (
      f"mean {statistics.mean(before):.1f} tokens before,"
      f" {statistics.mean(after):.1f} after"
  )
  title = f"Lengths, {group.label} (validation)"
  return _render(f"lengths_{index}", title, told, draw)


def _plain(label: str) -> str:
  """A label in which matplotlib sees neither mathematics nor a hidden name."""
  label = label.replace("$", r"\$")
  return f" {label}" if label.startswith("_") else label


def _render(name: str, title: str, text: str, draw: Draw) -> Picture:
  light, dark = (
      "data:image/svg+xml;base64,"
      + base64.b64encode(_save(draw, theme, "svg")).decode("ascii")
      for theme in (LIGHT, DARK)
  )
  png = _save(draw, LIGHT, "png", title)
  return Picture(name.replace("/", "_"), title, text, light, dark, png)


def _save(draw: Draw, theme: Theme, kind: str, title: str = "") -> bytes:
  figure = Figure(figsize=(4.4, 3.4), layout="constrained")
  axes = figure.subplots()
  draw(axes, theme)
  # Below the axes it can hide nothing.
  figure.legend(
      loc="outside lower center",
      ncols=3,
      frameon=False,
      labelcolor=theme.ink,
      fontsize=10,
  )
  axes.grid(alpha=0.25, color=theme.faint)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(theme.faint)
  axes.tick_params(colors=theme.ink, labelsize=10)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set(color=theme.ink, fontsize=11)
  axes.patch.set_alpha(0)
  axes.set_title(_plain(title), color=theme.ink, fontsize=11)
  buffer = io.BytesIO()
  # The same runs give the same bytes: no date, no random identifiers.
  with matplotlib.rc_context({"svg.hashsalt": "iapo_jax"}):
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(
        buffer,
        format=kind,
        dpi=160,
        facecolor="white" if kind == "png" else "none",
        metadata=metadata,
    )
  return buffer.getvalue()


def write_pngs(pictures: Sequence[Picture], folder: pathlib.Path) -> None:
  """Writes NAME.png of every picture."""
  for picture in pictures:
    (folder / f"{picture.name}.png").write_bytes(picture.png)
