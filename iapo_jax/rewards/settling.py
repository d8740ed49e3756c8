"""Decides at once whether an answer is right, where no algebra is needed."""

import functools
import math
import re

from iapo_jax.rewards import choices, clock, numbers, spelling, structure
from iapo_jax.rewards.text import last_boxed

_WORDS_GOLD = re.compile(r"\\text\s*\{[^{}]*[A-Za-z][^{}]*\}|[A-Za-z]{2,}")
# Powers and factorials that a computer algebra system may take forever to
# write out.
_ENDLESS = re.compile(
    r"\^[\s{(]*[-+]?\d{5,}|\d{401,}|\d{5,}[\s)}]*!|![\s)}]*!"
    r"|(?:\^[\s{(]*[-+]?\d+[\s})]*){3}"
)
_TOWER = re.compile(r"\^[\s{(]*[-+]?(\d+)[\s})]*\^[\s{(]*[-+]?(\d+)")
_LARGEST_EXPONENT = 10_000
_MOST_NESTED = 30


def settle(answer: str, gold: str) -> bool | None:
  """Returns whether an answer is right; None if that stays open.

  `answer` has at most `spelling.LONGEST` characters.
  """
  mine, theirs = spelling.normalise(answer), normalised(gold)
  if not mine:
    return False
  if letter := choices.gold_letter(theirs):
    return choices.chosen(mine) == letter
  if squeezed(mine) == squeezed(theirs):
    return True
  if (times := _times(mine, theirs)) is not None:
    return times
  golds = _gold_candidates(theirs)
  if golds and (found := numbers.candidates(mine)):
    return numbers.equal(mine, found, golds)
  if _WORDS_GOLD.fullmatch(theirs):
    if is_product(theirs):
      return None
    return _words(mine) == _words(theirs)
  if _is_endless(mine) and not _is_endless(theirs):
    return False
  if max(structure.depths(mine)) > _MOST_NESTED:
    return False
  return None


@functools.lru_cache(maxsize=4096)
def normalised(gold: str) -> str:
  """Returns a gold answer, or what is in its box, in one spelling."""
  return spelling.normalise(last_boxed(gold) or gold)


@functools.lru_cache(maxsize=4096)
def _gold_candidates(gold: str) -> frozenset:
  return numbers.candidates(gold, gold=True)


def squeezed(text: str) -> str:
  """Removes blanks that separate nothing, and braces of short scripts."""
  text = re.sub(r"\s*([^\w\s])\s*", r"\1", text)
  return re.sub(r"(\^|_)\{(\w)\}", r"\1\2", text)


def _times(mine: str, theirs: str) -> bool | None:
  """Compares times of day; None if the gold answer is none.

  A ratio such as 10:15 may also be one, so a ratio stays open.
  """
  gold = clock.read(theirs)
  if gold is None:
    return None
  time = clock.read(mine)
  if time is None:
    return None if re.fullmatch(r"(?:[1-9]\d*[:\s]*)+", theirs) else False
  return time == gold


def is_product(text: str) -> bool:
  """Returns whether letters are a product of variables rather than a word.

  Two words may have the same letters, as `no` and `on` have, so vowels make a
  word, except `a` among the letters that name variables, in their order.
  """
  if not 2 <= len(set(text)) == len(text) <= 4:
    return False
  if re.fullmatch("[b-df-hj-np-tv-z]+|[u-z]+", text):
    return True
  ordered = "".join(sorted(text))
  return bool(re.fullmatch("[abcdxyz]+", text)) and text in (
      ordered, ordered[::-1]
  )  # fmt: skip


def _words(text: str) -> str:
  """Returns words to compare, without an introduction or an article."""
  text = spelling.untexted(text)
  text = re.sub(r"\\([A-Za-z]+) ?", r"\1", text)
  words = " ".join(text.casefold().replace("-", " ").split()).strip(" .")
  words = re.sub(r"^(?:it|the [a-z]+) (?:is|was) (?!not\b)", "", words)
  return re.sub(r"^(?:an?|the) ", "", words)


def _is_endless(text: str) -> bool:
  """Returns whether powers or factorials may take forever to write out."""
  if _ENDLESS.search(text):
    return True
  return any(
      int(upper) * math.log(max(int(lower), 1)) > math.log(_LARGEST_EXPONENT)
      for lower, upper in _TOWER.findall(text)
  )
