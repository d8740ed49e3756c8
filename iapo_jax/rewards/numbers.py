r"""Exact numbers in normalised answers."""

import re
from fractions import Fraction

_LONGEST = 400  # characters of a number
_LARGEST_EXPONENT = 400

_UNSIGNED = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(?![A-Za-z])\d*)?|\.\d+"
)
_RATIO = (
    rf"\\frac\s*\{{\s*(?P<top>[-+]?\s*(?:{_UNSIGNED}))\s*\}}"
    rf"\s*\{{\s*(?P<bottom>[-+]?\s*(?:{_UNSIGNED}))\s*\}}"
)
_NUMBER = re.compile(
    rf"(?P<signs>[-+]?)\s*(?:(?P<dollar>(?:US)?\\?\$|[€£¥])\s*(?P<sign2>[-+]?)\s*)?"
    rf"(?:"
    rf"(?P<ratio>(?:(?P<whole>\d+)\s*)?{_RATIO})"
    rf"|(?:(?P<whole2>\d+)\s+)?(?P<above>{_UNSIGNED})\s*/\s*"
    rf"(?P<below>{_UNSIGNED})"
    rf"|(?P<spaced>\d{{1,3}}(?: \d{{3}})+(?![\d,.]))"
    rf"|(?P<plain>{_UNSIGNED})"
    rf"(?:[eE](?P<exponent>[-+]?\d{{1,4}})(?![\d.])"
    rf"|\s*(?:\\times|\*)\s*10\s*\^\s*(?:\{{\s*(?P<power>[-+]?\s*\d{{1,4}})"
    rf"\s*\}}|(?P<power2>[-+]?\d{{1,4}})))?"
    rf")"
)
_REPEATING = re.compile(
    r"([-+]?)(\d*)\.(\d*)\\(?:overline|bar)\s*\{\s*(\d+)\s*\}"
)
_POWER_OF_TEN = re.compile(
    r"(?P<sign>[-+]?)\s*10\s*\^\s*(?:\{\s*(?P<braced>[-+]?\d{1,4})\s*\}"
    r"|(?P<bare>[-+]?\d{1,4}))"
)
SHORT_UNITS = (
    "cm|mm|km|dm|kg|mg|ml|mL|cl|dl|ft|in|yd|mi|lb|lbs|oz|hr|hrs|min|mins|sec"
    "|secs|mph|kph|kW|Hz|gal|pts?|qt|am|pm|AM|PM|USD|EUR|KB|MB|GB|TB|sq"
)
# A text can match in one way only; otherwise one that is no unit would be split
# in exponentially many ways. So words match whole and need a separator, the dot
# after a word belongs to it only where the unit ends, and no word stands in two
# alternatives. Letters right after a number are factors.
_LONG = r"(?:(?<=[\s/.'-])[A-Za-z]{3,}+|(?<![\sA-Za-z])[A-Za-z]{4,}+)"
_NAMED = rf"(?>(?:{SHORT_UNITS})\b|{_LONG})(?:\.(?=\s*(?:\^|\Z)))?"
_WORD = (
    rf"(?:\\text\s*\{{[^{{}}\\\d]*\}}|{_NAMED}"
    rf"|(?<=[\s/])[mgshLlJNWVKCF](?![A-Za-z^])|(?<=\s)m(?=\^)|[€£¥¢])"
)
_UNIT = re.compile(
    rf"\s*(?:/\s*)?(?:{_WORD}|of\b)"
    rf"(?:[\s/.'-]+(?:{_WORD}|(?<=\s)(?:of|an?|at|by|on)\b))*"
    r"(?:\s*\^\s*(?:\{\s*-?[23]\s*\}|-?[23]))?\s*"
)
# The unit of a gold answer. Other letters in a gold answer are mathematics.
_GOLD_UNIT = re.compile(
    rf"\s*(?:\\text\s*\{{[^{{}}\\\d]*\}}|(?<=\s)(?:(?:{SHORT_UNITS})\b"
    r"|[A-Za-z]{3,}+(?:\s+[A-Za-z]{2,}+)*))"
    r"(?:\s*\^\s*(?:\{\s*-?[23]\s*\}|-?[23]))?\s*"
)
_DEGREE = re.compile(r"\s*\^\\circ\s*[CF]?\s*")
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
# Words that change the value of the number before them, or make it no number.
_OTHER_NUMBER = re.compile(
    r"and|or|to|pi|sqrt|squared|cubed|half|halves|halved|doubled|tripled|thirds?"
    r"|quarters?|plus|minus|times|over|divided|mod|factorial|if|not|but|except"
    r"|versus|vs|than|below|above|less|fewer|twice|negative|about|sin|cos|tan|log"
    r"|ln|exp|roots?|powers?|infinity|unknown|is|are|was|equals|choose|base|point"
    r"|because|probably|perhaps|maybe|wrong"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|[a-z]+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|[a-z]+illions?"
    r"|googol|lakh|crore|scores?|tens|hundreds|thousands|dozens"
    r"|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie"
    r"|hundred|thousand|[a-z]+illion)ths?"
    r"|print|return|import|lambda|def|eval|exec|elif|else|while|assert|null|none"
    r"|true|false|nan|undefined"
)


def candidates(text: str, *, gold: bool = False) -> frozenset[Fraction]:
  """Returns the numbers that a normalised answer may stand for, at most two.

  Units are ignored, since problems state them. `50 %` may mean 50, where the
  problem asks for percent, or 1/2. An answer that is no number gives none.

  Args:
    text: from `spelling.normalise`.
    gold: whether it is a gold answer, in which `2k` and `6s^2` have no units.
  """
  if match := _POWER_OF_TEN.fullmatch(text):
    value = _power_of_ten(match.group("braced") or match.group("bare"))
    if value is None:
      return frozenset()
    return frozenset([-value if match.group("sign") == "-" else value])
  match = _REPEATING.fullmatch(text)
  if match and len(text) <= _LONGEST:
    return frozenset([_repeating(*match.groups())])
  match = _NUMBER.match(text)
  if not match or len(match.group()) > _LONGEST:
    return frozenset()
  value = _value(match)
  if value is None:
    return frozenset()
  return _with_unit(value, text[match.end() :], gold)


def _repeating(sign: str, whole: str, once: str, again: str) -> Fraction:
  """Returns the value of a repeating decimal."""
  value = Fraction(f"{whole or 0}.{once or 0}")
  value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(once))
  return -value if sign == "-" else value


def _with_unit(value: Fraction, rest: str, gold: bool) -> frozenset[Fraction]:
  """Applies the text after a number: a scale, a percent sign, a unit."""
  if rest.lstrip().startswith("(") and rest.endswith(")"):
    rest = " " + rest.strip()[1:-1]
  # Words inside \text count; names of commands do not.
  words = re.findall(r"[a-z]+", re.sub(r"\\[a-z]+", " ", rest.lower()))
  if words and words[0] in _SCALES and rest.lstrip()[:1].isalpha():
    value *= _SCALES[words[0]]
    rest, words = rest.lstrip()[len(words[0]) :], words[1:]
  percent = words[:1] in (["percent"], ["pct"]) or rest.lstrip()[:1] == "%"
  rest = rest.lstrip().removeprefix("%") if "%" in rest else rest
  alone = not rest.strip() or bool(_DEGREE.fullmatch(rest))
  unit = _GOLD_UNIT if gold else _UNIT
  if not alone and (
      is_other_number(" ".join(words)) or not unit.fullmatch(rest)
  ):
    return frozenset()
  return frozenset([value, value / 100] if percent else [value])


def is_other_number(words: str) -> bool:
  """Returns whether words after a number change its value or make it none."""
  return any(map(_OTHER_NUMBER.fullmatch, words.lower().split()))


def _value(match: re.Match[str]) -> Fraction | None:
  """Returns the number that `_NUMBER` matched.

  None if it divides by zero or its power of ten is too large.
  """
  group = match.group
  try:
    if group("ratio"):
      value = _decimal(group("whole") or "0")
      value += _decimal(group("top")) / _decimal(group("bottom"))
    elif group("above"):
      value = _decimal(group("whole2") or "0")
      value += _decimal(group("above")) / _decimal(group("below"))
    else:
      value = _decimal(group("spaced") or group("plain"))
      exponent = group("exponent") or group("power") or group("power2")
      if exponent:
        scale = _power_of_ten(exponent)
        if scale is None:
          return None
        value *= scale
  except ZeroDivisionError:
    return None
  negative = (group("signs") == "-") != (group("sign2") == "-")
  return -value if negative else value


def _decimal(text: str) -> Fraction:
  text = text.replace(",", "").replace(" ", "")
  if text.endswith("."):
    text += "0"
  return Fraction(text)


def _power_of_ten(exponent: str) -> Fraction | None:
  power = int(exponent.replace(" ", ""))
  return Fraction(10) ** power if abs(power) <= _LARGEST_EXPONENT else None


def equal(
    answer: str, numbers: frozenset[Fraction], golds: frozenset[Fraction]
) -> bool:
  """Returns whether an answer's number equals a gold one.

  A gold number with infinitely many decimals, such as 1/3, also accepts six or
  more of its digits, correctly rounded or cut.

  Args:
    answer: the normalised answer.
    numbers: its `candidates`.
    golds: the `candidates` of the gold answer.
  """
  if len(numbers) == len(golds) == 2:  # both in percent
    return numbers == golds
  if numbers & golds:
    return True
  endless = frozenset(filter(_never_ends, golds))
  return bool(endless) and shortens(answer, numbers, endless)


def shortens(
    answer: str, numbers: frozenset[Fraction], exact: frozenset[Fraction]
) -> bool:
  """Returns whether an answer is a decimal that shortens an exact number.

  It has at least six digits, the first of them not zero, and the last is
  correctly rounded or cut.

  Args:
    answer: the normalised answer.
    numbers: its `candidates`.
    exact: numbers with infinitely many decimals, exact to more digits than
      `answer` has.
  """
  decimals = re.search(r"\.(\d+)", answer)
  digits = re.sub(r"\D", "", answer).lstrip("0")
  if not decimals or len(digits) < 6 or "/" in answer or "\\" in answer:
    return False
  last = Fraction(1, 10 ** len(decimals.group(1)))
  return any(
      _is_shortened(number, value, last)
      for number in numbers
      for value in exact
  )


def _is_shortened(number: Fraction, value: Fraction, last: Fraction) -> bool:
  """Returns whether `number` is `value` rounded or cut to units of `last`."""
  error = abs(number - value)
  cut = abs(number) < abs(value) and error < last
  return error <= last / 2 or cut


def _never_ends(number: Fraction) -> bool:
  """Returns whether a number has infinitely many decimals."""
  # Decimals never end if no power of ten is a multiple of the denominator. This
  # power is high enough: a prime divides it fewer than bit_length times.
  return pow(10, number.denominator.bit_length(), number.denominator) != 0
