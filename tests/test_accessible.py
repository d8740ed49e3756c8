"""The page can be read by all: contrasts of WCAG 2.2, keyboard, structure."""

import pathlib
import re

import pytest
from matplotlib.colors import to_rgb

from iapo_jax.tools.report import figures

TEMPLATES = pathlib.Path(figures.__file__).parent / "templates"
STYLE = (TEMPLATES / "base.html.j2").read_text(encoding="utf-8")
TEXT, LARGE = 4.5, 3.0  # the least contrast of text; of graphics and focus


def luminance(colour):
  """Relative, of WCAG 2.2: of sRGB made linear."""
  linear = [
      x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
      for x in colour
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
  low, high = sorted([luminance(a), luminance(b)])
  return (high + 0.05) / (low + 0.05)


def over(colour, paper, share):
  pairs = zip(colour, paper, strict=True)
  return [share * x + (1 - share) * y for x, y in pairs]


@pytest.fixture(params=["light", "dark"])
def scheme(request):
  """The page's colours of a scheme, and of its figures."""
  blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
  assert len(blocks) == 2
  found = {}
  for block in blocks[: 1 + (request.param == "dark")]:
    found |= dict(re.findall(r"--([a-z]+): ([^;]+);", block))
  colours = {}
  for name, value in found.items():
    if value.startswith("#"):
      colours[name] = to_rgb(value)
    elif " " in value:
      colours[name] = [int(x) / 255 for x in value.split()]
  theme = {"light": figures.LIGHT, "dark": figures.DARK}[request.param]
  return colours, float(found["strength"]), theme


def test_contrast_by_hand():
  assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
  # #777 on white is the textbook's miss: 4.48.
  assert contrast(to_rgb("#777777"), (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


def test_text_can_be_read(scheme):
  colours, _, _ = scheme
  for name in ("ink", "soft", "link", "good", "bad"):
    for paper in ("paper", "card"):
      assert contrast(colours[name], colours[paper]) >= TEXT, (name, paper)


def test_tokens_can_be_read_at_full_colour(scheme):
  colours, strength, _ = scheme
  for kind in ("gain", "loss"):
    behind = over(colours[kind], colours["card"], strength)
    assert contrast(colours["ink"], behind) >= TEXT, kind
    # Those that are focused have a ring.
    assert contrast(colours["link"], colours["card"]) >= LARGE


def test_curves_can_be_told_from_the_paper(scheme):
  colours, _, theme = scheme
  for colour in theme.colours:
    assert contrast(to_rgb(colour), colours["card"]) >= LARGE, colour
  assert contrast(to_rgb(theme.ink), colours["card"]) >= TEXT
