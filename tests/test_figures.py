"""The pictures: what is in them, that nothing is cut, who is who."""

import pytest
from runs import ODD_LABELS, synthetic

from iapo_jax.tools.report import figures


def drawn_figures(groups):
  """The figures before they are saved."""
  drawn = []
  with pytest.MonkeyPatch.context() as patch:
    save = figures._save
    patch.setattr(
        figures, "_save", lambda f, kind: (drawn.append(f), save(f, kind))[1]
    )
    figures.all_of(groups)
  return drawn


@pytest.mark.full
@pytest.mark.parametrize(
    "labels",
    [
        ["warm start", "GRPO", "IAPO paper", "IAPO to_go",
         "to_go, shuffled (control)", "length penalty (control)"],
        [f"a setting with a long name, number {i}" for i in range(20)],
        ODD_LABELS,
    ],
    ids=["demo", "many", "odd"],
)  # fmt: skip
def test_nothing_is_cut(labels):
  groups = [synthetic(label, i) for i, label in enumerate(labels)]
  for figure in drawn_figures(groups):
    figure.canvas.draw()
    whole = figure.bbox.padded(1)
    (axes,) = figure.axes
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(labels)
    parts = [legend, axes.xaxis.label, axes.yaxis.label]
    if axes.get_title():  # the page has its own
      parts.append(axes.title)
    for part in parts:
      box = part.get_window_extent()
      assert whole.contains(box.x0, box.y0) and whole.contains(box.x1, box.y1)
    # A long legend makes the figure higher, and leaves the axes their size.
    assert axes.bbox.height > 1.6 * figure.dpi
    below = axes.xaxis.label.get_window_extent().y0
    assert legend.get_window_extent().y1 <= below + 1


def test_groups_look_different():
  for theme in (figures.LIGHT, figures.DARK):
    assert len({figures.colour(i, theme) for i in range(7)}) == 7
    for other in (figures.line_style, figures._marker):
      looks = {(figures.colour(i, theme), other(i)) for i in range(28)}
      assert len(looks) == 28


def test_a_single_point_is_drawn():
  """A run that has just begun: a line through it would be invisible."""
  for points, marker in ((1, "o"), (2, "None")):
    figure = drawn_figures([synthetic("young", 0, points=points)])[-1]
    (line,) = figure.axes[0].lines
    assert line.get_marker() == marker


def test_error_bars_are_whole():
  """20 and 60 tokens: 40 and a standard error of 20."""
  figure = drawn_figures([synthetic("wide", 0, seeds=2)])[0]
  assert figure.axes[0].get_xlim() == pytest.approx((0, 66))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_share_is_beyond_all_or_nothing(share):
  group = synthetic("flat", 0)
  (run,) = group.runs
  run.summary["accuracy"], run.summary["accuracy_se"] = share, 0.0
  for line in run.lines["validation"]:
    line["accuracy"] = share
  for figure in drawn_figures([group])[:2]:
    low, high = figure.axes[0].get_ylim()
    # A tenth of the rest at most, for the marker.
    assert low >= -0.1001 * high and high - 1 <= 0.1001 * (1 - low)


def test_without_validation_the_training_is_drawn():
  group = synthetic("x", 0)
  line = {"stage": "rl", "step": 1, "reward/accuracy": 0.25,
          "length/completion": 30.0}  # fmt: skip
  group.runs[0].lines.clear()
  group.runs[0].lines["rl"] = [line]
  titles = [picture.title for picture in figures.all_of([group])]
  assert titles[1:] == ["Accuracy (training)", "Length (training)"]


@pytest.mark.parametrize("label", ODD_LABELS)
def test_every_label_is_in_the_legend_as_it_is(label):
  """Neither mathematics nor a name that matplotlib hides; wrapped if long."""
  figure = drawn_figures([synthetic(label, 0)])[0]
  (text,) = figure.legends[0].get_texts()
  shown = label.encode("utf-8", "backslashreplace").decode("utf-8")
  assert unwrapped(text.get_text().replace(r"\$", "$")) == unwrapped(shown)


def unwrapped(text):
  return "".join(text.split())
