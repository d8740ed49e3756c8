"""Times of day in normalised answers."""

import dataclasses
import re

from iapo_jax.rewards import spelling

_HALF = r"(?P<half>[ap])\.?\s*m\b\.?|in the (?P<part>morning|afternoon|evening)"
_TIME = re.compile(
    r"(?:(?:it|the time)\s+is\s+)?(?:at\s+)?(?P<hour>\d{1,2})"
    r"(?:\s*\{?:\}?\s*(?P<minute>\d\d)(?:\s*\{?:\}?\s*(?P<second>\d\d))?)?"
    rf"(?:\s*o'clock)?(?:\s*(?:{_HALF}|(?P<name>noon|midnight)))?"
    r"(?:\s+on\s+(?P<day>[a-z]+day))?",
    re.IGNORECASE,
)
_NAMES = {"noon": 12 * 3600, "midnight": 0}
_HALVES = {"a": 0, "p": 12, "morning": 0, "afternoon": 12, "evening": 12}


@dataclasses.dataclass(frozen=True)
class Time:
  """A time of day.

  Attributes:
    seconds: since midnight, as written.
    known: whether the half of the day is known: `10:15` alone may be morning
      or evening.
    day: of the week, in small letters; empty if it is not said.
  """

  seconds: int
  known: bool
  day: str = ""


def read(text: str) -> Time | None:
  """Returns the time that a normalised answer is; None if it is none.

  A whole number without `a.m.`, `p.m.`, `noon` or `midnight` is no time.
  """
  text = " ".join(spelling.untexted(text).split())
  if text.lower() in _NAMES:
    return Time(_NAMES[text.lower()], True)
  found = _TIME.fullmatch(text)
  if not found:
    return None
  hour, minute, second = (
      int(found[name] or 0) for name in ("hour", "minute", "second")
  )
  half = (found["half"] or found["part"] or "").lower()
  if minute > 59 or second > 59:
    return None
  seconds = 60 * minute + second
  day = (found["day"] or "").lower()
  if name := (found["name"] or "").lower():
    exact = hour == 12 and not seconds
    return Time(_NAMES[name], True, day) if exact else None
  if half:
    if not 1 <= hour <= 12:
      return None
    hour = hour % 12 + _HALVES[half]
    return Time(3600 * hour + seconds, True, day)
  if hour > 23 or not found["minute"]:
    return None
  return Time(3600 * hour + seconds, not 1 <= hour <= 12, day)
