"""The page's figures, each drawn in light, in dark and as PNG."""

import base64
import dataclasses
import io
import pathlib
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from iapo_jax.tools.report import runs
from iapo_jax.tools.report.runs import Group

_WIDTH, _HEIGHT = 4.4, 3.4  # inches; the height includes one legend line
_LINE = 0.22  # inches per line of the legend
_LABEL = 44  # characters per line of a label


@dataclasses.dataclass(frozen=True)
class Theme:
  """Colours of light or dark mode.

  Attributes:
    ink: of text and axes.
    faint: of the grid, and of data shown only for comparison.
    colours: of the groups.
  """

  ink: str
  faint: str
  colours: tuple[str, ...]


LIGHT = Theme(
    "#1c2430",
    "#8a94a3",
    ("#5b6573", "#0072b2", "#b35900", "#00795a", "#5a3fd0", "#5c1010",
     "#d6249f"),
)  # fmt: skip
DARK = Theme(
    "#e6e9ee",
    "#8f99a8",
    ("#aeb7c4", "#56b4e9", "#e69f00", "#2fc79b", "#9070ff", "#f5e663",
     "#f25fb8"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Picture:
  """A figure of the page.

  Attributes:
    name: of its PNG file, without the ending.
    title: shown above it.
    text: describes the content for people who do not see it.
    size: width and height in CSS pixels.
    light: a data URI.
    dark: a data URI.
    png: bytes of the PNG file.
  """

  name: str
  title: str
  text: str
  size: tuple[int, int]
  light: str
  dark: str
  png: bytes


Draw = Callable[[Axes, Theme], None]


def colour(index: int, theme: Theme) -> str:
  """Returns a group's colour by its place; colours repeat after the last."""
  return theme.colours[index % len(theme.colours)]


def line_style(index: int) -> str:
  """Returns a group's dashes, which change where the colours repeat."""
  return ("-", "--", ":", "-.")[index // 7 % 4]


def _marker(index: int) -> str:
  return "osD^vPX*"[index % 8]


def all_of(groups: Sequence[Group]) -> list[Picture]:
  """Draws every figure that the runs have data for, the main ones first."""
  pictures = []
  if any(group.finished("accuracy") for group in groups):
    pictures.append(_trade_off(groups))
  for stage, metric, title, unit in _curves(groups):
    if any(group.curve(stage, metric) for group in groups):
      pictures.append(_over_steps(groups, stage, metric, title, unit))
  for index, group in enumerate(groups):
    lengths = runs.before_and_after(group)
    if lengths:
      pictures.append(_histogram(index, group, *lengths))
  return pictures


def _curves(groups: Sequence[Group]) -> list[tuple[str, str, str, str]]:
  """Returns stage, metric, title and unit of each curve over steps."""
  stage, accuracy, length = "validation", "accuracy", "mean_tokens"
  reasoning, answer = "mean_reasoning_tokens", "mean_answer_tokens"
  if not any(group.curve(stage, accuracy) for group in groups):
    stage, accuracy, length = "rl", "reward/accuracy", "length/completion"
    reasoning, answer = "length/reasoning", "length/answer"
  name = "training" if stage == "rl" else stage
  return [
      (stage, accuracy, f"Accuracy ({name})", "share correct"),
      (stage, length, f"Length ({name})", "tokens per completion"),
      (stage, reasoning, f"Reasoning ({name})", "reasoning tokens"),
      (stage, answer, f"Answer ({name})", "answer tokens"),
      ("rl", "probe/entropy_first", "Uncertainty before reasoning (training)",
       "H₀ (nats)"),
      ("rl", "probe/entropy_last", "Uncertainty after reasoning (training)",
       "H at the end (nats)"),
      ("warm_start", "sft/nll", "Warm start (training)",
       "−log-likelihood (nats/token)"),
  ]  # fmt: skip


def _trade_off(groups: Sequence[Group]) -> Picture:
  """Draws accuracy against tokens on the test split, one point per group."""
  metrics = ("mean_tokens", "accuracy")
  points = [
      (i, group, *(runs.mean_and_error(group, metric) for metric in metrics))
      for i, group in enumerate(groups)
      if group.finished("accuracy")
  ]

  def draw(axes: Axes, theme: Theme) -> None:
    for i, group, tokens, accuracy in points:
      axes.errorbar(
          tokens[0], accuracy[0], xerr=tokens[1] or 0, yerr=accuracy[1] or 0,
          fmt=_marker(i), markersize=8, color=colour(i, theme), capsize=3,
      )  # fmt: skip
      # A separate entry for the legend: error bars would hide the marker there.
      axes.plot([], [], linestyle="", marker=_marker(i), markersize=8,
                color=colour(i, theme), label=_plain(group.label))  # fmt: skip
    axes.set(xlabel="tokens per completion", ylabel="share correct")
    # Shows the widest error bar whole.
    ends = [tokens[0] + (tokens[1] or 0) for _, _, tokens, _ in points]
    axes.set_xlim(0, 1.1 * max(ends))
    axes.margins(y=0.25)
    _keep_to_shares(axes)

  told = "; ".join(
      f"{group.label}: {accuracy[0]:.3f} in {tokens[0]:.1f} tokens"
      for _, group, tokens, accuracy in points
  )
  return _render("trade_off", "Test problems: accuracy and length", told, draw)


def _keep_to_shares(axes: Axes) -> None:
  """Limits the y axis to [0, 1], plus room for a marker."""
  low, high = axes.get_ylim()
  room = 0.05 * (high - low)
  axes.set_ylim(max(low, -room), min(high, 1 + room))


def _over_steps(
    groups: Sequence[Group], stage: str, metric: str, title: str, unit: str
) -> Picture:
  """Draws the mean of each group over steps, and its single seeds thinly."""
  drawn = []
  for i, group in enumerate(groups):
    curves = group.curve(stage, metric)
    if curves:
      drawn.append((i, group.label, curves, _mean_curve(curves)))

  def draw(axes: Axes, theme: Theme) -> None:
    for i, label, curves, mean in drawn:
      lines = [(*mean, {"linewidth": 2, "label": _plain(label)})]
      if len(curves) > 1:
        thin = {"linewidth": 0.7, "alpha": 0.45}
        lines += [(*zip(*curve, strict=True), thin) for curve in curves]
      for steps, values, look in lines:
        axes.plot(
            steps,
            values,
            color=colour(i, theme),
            linestyle=line_style(i),
            # A line through a single point is invisible.
            marker=_marker(i) if len(steps) == 1 else None,
            **look,
        )
    name = "step of the warm start" if stage == "warm_start" else "RL step"
    axes.set(xlabel=name, ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if metric == "accuracy":
      _keep_to_shares(axes)
    else:
      axes.set_ylim(bottom=0)

  told = "; ".join(
      f"{label}: from {means[0]:.3g} to {means[-1]:.3g}"
      for _, label, _, (_, means) in drawn
      if means
  )
  text = f"{unit} over steps; {told}"
  return _render(f"{stage}_{metric}", title, text, draw)


def _mean_curve(
    curves: Sequence[Sequence[tuple[int, float]]],
) -> tuple[list[int], list[float]]:
  """Returns the steps that all runs have, and the mean at each."""
  tables = [dict(curve) for curve in curves]
  steps = sorted(set.intersection(*(set(table) for table in tables)))
  return steps, [statistics.mean(t[step] for t in tables) for step in steps]


def _histogram(
    index: int, group: Group, before: list[int], after: list[int]
) -> Picture:
  width = max(1, round(max(before + after) / 30))
  edges = list(range(0, max(before + after) + 2 * width, width))
  means = [f"{statistics.mean(lengths):.1f}" for lengths in (before, after)]

  def draw(axes: Axes, theme: Theme) -> None:
    filled = {"color": theme.faint, "alpha": 0.45}
    outline = {
        "histtype": "step", "linewidth": 2, "color": colour(index, theme),
    }  # fmt: skip
    for name, lengths, mean, look in (
        ("before", before, means[0], filled),
        ("after", after, means[1], outline),
    ):
      share = [100 / len(lengths)] * len(lengths)
      label = f"{name}: mean {mean}"
      axes.hist(lengths, edges, weights=share, label=label, **look)
    axes.set(xlabel="tokens per completion", ylabel="% of completions")
    axes.margins(y=0.2)

  told = f"mean {means[0]} tokens before, {means[1]} after"
  title = f"Lengths, {group.label} (validation)"
  slug = re.sub(r"[^a-z0-9]+", "_", group.label.lower()).strip("_")[:40]
  return _render(f"lengths_{index}_{slug}".rstrip("_"), title, told, draw)


def _plain(label: str) -> str:
  """Wraps a label and escapes what matplotlib would not print unchanged.

  Escapes mathematics, a leading underscore and characters without UTF-8.
  """
  label = label.encode("utf-8", "backslashreplace").decode("utf-8")
  label = label.replace("$", r"\$")
  lines = textwrap.wrap(label, _LABEL, break_on_hyphens=False) or [label]
  return (" " if label.startswith("_") else "") + "\n".join(lines)


def _render(name: str, title: str, text: str, draw: Draw) -> Picture:
  images = []
  for theme in (LIGHT, DARK):
    svg = _save(_figure(draw, theme), "svg")
    images.append(
        "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    )
  figure = _figure(draw, LIGHT, title)
  png = _save(figure, "png")
  size = tuple(round(80 * inches) for inches in figure.get_size_inches())
  return Picture(name.replace("/", "_"), title, text, size, *images, png)


def _figure(draw: Draw, theme: Theme, title: str = "") -> Figure:
  figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
  axes = figure.subplots()
  draw(axes, theme)
  _add_legend(figure, theme)
  axes.patch.set_alpha(0)
  axes.set_title(_plain(title))
  dress(axes, theme)
  return figure


def dress(axes: Axes, theme: Theme = LIGHT) -> None:
  """Applies the shared colours and sizes; call it after setting the title."""
  axes.grid(alpha=0.25, color=theme.faint)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["bottom", "left"]].set_color(theme.faint)
  axes.tick_params(colors=theme.ink, labelsize=10)
  for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
    label.set(color=theme.ink, fontsize=11)


def _add_legend(figure: Figure, theme: Theme) -> None:
  """Puts the legend below the axes, in as many columns as fit.

  Extra lines of the legend make the figure higher; the axes keep their size.
  """
  renderer = FigureCanvasAgg(figure).get_renderer()

  def legend(columns: int) -> Legend:
    return figure.legend(
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        labelcolor=theme.ink,
        fontsize=10,
        handlelength=2.8,  # room for dashes
    )

  for columns in (3, 2, 1):
    placed = legend(columns)
    box = placed.get_window_extent(renderer)
    if box.width <= figure.bbox.width or columns == 1:
      break
    placed.remove()
  extra = box.height / figure.dpi - 2 * _LINE
  figure.set_figheight(_HEIGHT + max(extra, 0.0))


def _save(figure: Figure, kind: str) -> bytes:
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


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a figure as SVG; the same figure gives the same bytes."""
  with matplotlib.rc_context({"svg.hashsalt": "iapo_jax"}):
    figure.savefig(path, metadata={"Date": None})
