r"""Prepares formulas for Math-Verify's parser, which misreads some of them.

The parser adds `5(3)` as if it were a mixed number, takes all that follows for
the argument in `\ln 2 \cdot 3`, and reads 53 bits of a decimal. `explicit`
writes such formulas so that there is one reading, or refuses them.
"""

import re

_FUNCTION = (
    r"\\(?:(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp)(?![A-Za-z])"
)
_SCRIPT = r"(?:[\^_](?:\{[^{}]*\}|\w))"
_ATOM = (
    r"(?:\d+(?:\.\d+)?|[A-Za-z]|\\"
    r"(?:sqrt(?:\[[^\]]*\])?\{[^{}]*\}|frac\{[^{}]*\}\{[^{}]*\}"
    r"|pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|rho|sigma|omega)"
    rf"(?![A-Za-z]))!?{_SCRIPT}?"
)
_BARE_ARGUMENT = re.compile(
    rf"(?P<name>{_FUNCTION}(?:{_SCRIPT}\s*)*)\s*"
    rf"(?P<argument>(?>{_ATOM}(?:\s*{_ATOM})*))(?!\s*[({{\[])"
)
_BINOMIAL = r"\\[dt]?binom\s*\{[^{}]*\}\s*\{[^{}]*\}"
_DECIMAL = re.compile(r"(?P<script>[_^]\s*)?(?P<whole>\d*)\.(?P<rest>\d+)")
_SCIENTIFIC = re.compile(
    r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![\d.A-Za-z])"
)
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]+")
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([\^_])\s*(\d)(?=\s)", r"\1{\2}"),
        (r"(\d+!)\s*\^", r"(\1)^"),
        # Factors beside each other.
        (r"(?<![\^_\d.A-Za-z{])(\d+(?:\.\d+)?!?)\s*\(", r"\1\\times ("),
        (r"(?<=\))\s*(?=[\d(])", r"\\times "),
        (rf"(?<=[\d)}}!])\s*(?={_BINOMIAL})", r"\\times "),
        (rf"({_BINOMIAL})\s*(?=[\d(]|\\(?:frac|sqrt))", r"\1\\times "),
    )
)
# Programs, and text in which the parser finds another number: `[5]*3`, `5 6`,
# `10%3`, `0.5.5`, `5{3}`, `2^3^2`, `|2|-3|3|`; angles, which are no products;
# derivatives, which it evaluates.
_UNREADABLE = re.compile(
    r"[#;@?$~`\"&]|//|\\\\|\.\d*\.|(?<![_\d])\d+\s+(?:\d|\\frac\s*\{\s*\d)"
    r"|%\s*[^\s,)}\]=<>+*/^-]|\d[eE][-+]?\d"
    rf"|{_FUNCTION}\s*\d+\s*\("
    r"|(?<!\\sqrt)\[[^A-Za-z\\\]]*\]|\]\s*\*"
    r"|(?<![\^_\d])\d+\s*\\?\{|(?:^|[-+*/=(])\s*\{"
    rf"|\^\s*(?:\{{[^{{}}]*\}}|\w)\s*\^|\^\w!|(?:\|.*){{3}}"
    r"|\\(?:angle|triangle|partial|nabla)(?![A-Za-z])"
    r"|\\frac\s*\{\s*d[^{}]*\}\s*\{\s*d\s*[A-Za-z]"
)


def explicit(text: str) -> str | None:
  """Returns a formula that can be read in one way only; None if there is none.

  Args:
    text: from `spelling.normalise`, a single formula.
  """
  text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  if _UNREADABLE.search(text):
    return None
  text = _BARE_ARGUMENT.sub(r"\g<name>(\g<argument>)", text)
  if r"\int" not in text:
    text = _LETTERS.sub(_apart, text)
  return _DECIMAL.sub(_as_fraction, text)


def _apart(match: re.Match[str]) -> str:
  """Writes letters apart: `d` begins a differential, `tr` is the trace."""
  letters = match.group()
  if letters.startswith("\\"):
    return letters
  return " ".join("{d}" if letter == "d" else letter for letter in letters)


def _as_fraction(match: re.Match[str]) -> str:
  digits = match["whole"] + match["rest"]
  fraction = rf"\frac{{{digits}}}{{1{'0' * len(match['rest'])}}}"
  return f"{match['script']}{{{fraction}}}" if match["script"] else fraction
