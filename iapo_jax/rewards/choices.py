"""Letters of multiple-choice options in normalised answers.

A letter counts only where it names an option: alone, as the label of a text, or
where a sentence chooses it. `A` and `I` are also words.
"""

import re

from iapo_jax.rewards import spelling

_GOLD = re.compile(r"(?:\\text\s*\{\s*)?\(?([A-Z])\)?\s*\}?")
_REASON = re.compile(r"(?<=\W)(?:because|since)\b.*", re.DOTALL)
# A capital, or any letter after the word for an option; with brackets.
_LETTER = re.compile(
    r"(?<![\w\\^_=+*/'-])[(\[{]?([A-Z])[)\]}]?(?![\w^=+*/(])"
    r"|\b(?:option|choice|letter)\s+[(\[{]?([a-z])[)\]}]?(?![\w'^])"
)
# Alone, small letters from k, and i, are variables rather than options.
_ALONE = re.compile(r"[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z]|[a-hj])[)\]}]?")
_LABEL = re.compile(
    r"(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])[.:)\]](?=\s))(.*)", re.DOTALL
)
# Text after a label that is not the text of the option.
_DENIED = re.compile(
    r"\W*(?:(?:(?:is|was|would be|seems|must be)\s+(?:not|wrong|incorrect|false"
    r"|impossible|eliminated)|isn't|wasn't|wrong|incorrect|maybe|actually|rather"
    r"|can(?:not|'t) be (?:right|correct|true|it|the answer)"
    r"|not (?:correct|right|the answer))\b|(?:not|no|nope|false)\W*$)",
    re.IGNORECASE,
)
# Another option in the text of a label.
_ANOTHER = re.compile(
    r"(?:^|[\s(\[])[A-Z]\s*[.:)\]]|[,;/&-]\s*\(?[A-Z]\)?$|^\s*\(?[A-Z]\)?$"
    r"|\([a-z]\)$"
    r"|\b(?:is|or|and|not|nor|than|be|option|choice|answer|letter|choose|pick|so"
    r"|actually|rather|then)"
    r"\s+\(?[A-Z](?![\w'^])(?!\s+[a-z])"
)
_CHOOSES = re.compile(
    r"(?:\b(?:option|choice|letter|answer|is|be|was|choose|chose|pick|picked"
    r"|definitely|clearly|surely|obviously"
    r"|select|selected|say|guess|with|go for|think|believe|so|hence|thus"
    r"|therefore)"
    r"|'s)\s*[:,=]?(?:\s+that)?(?:\s+the)?(?:\s+(?:correct|right|best|final))?"
    r"(?:\s+(?:option|choice|letter|answer))?\s*:?\s*",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"\s+(?:is|must be|would be)\s+(?:the\s+)?"
    r"(?:correct|right|best|true|my|answer|one)"
    r"(?:\s+(?:final answer|answer|option|choice|one))?",
    re.IGNORECASE,
)
_AFTER = re.compile(r",?\s+I (?:think|believe|guess)")
_DOUBT = re.compile(
    r"n't\b|\b(?:not|no|never|none|neither|nor|either|or|wrong|incorrect|false"
    r"|except|unless|if|than|rather|instead|excluded?|eliminated?|impossible"
    r"|cannot|ruled?|but|maybe|unlikely)\b",
    re.IGNORECASE,
)


def gold_letter(text: str) -> str | None:
  """Returns the letter if a normalised gold answer is one; else None."""
  found = _GOLD.fullmatch(text)
  return found and found.group(1)


def chosen(text: str) -> str | None:
  """Returns the letter of the only option that a text chooses; None in doubt.

  Args:
    text: from `spelling.normalise`.
  """
  text = spelling.untexted(text).strip()
  text = _REASON.sub("", text).rstrip(" .,;:-")
  if alone := _ALONE.fullmatch(text):
    return (alone[1] or alone[2]).upper()
  if label := _LABEL.fullmatch(text):
    return _unless_denied(label[1] or label[2], label[3])
  return _chosen_in_sentence(text)


def _chosen_in_sentence(text: str) -> str | None:
  letters = [x for x in _LETTER.finditer(text) if not _is_word(text, x)]
  if len(letters) != 1:
    return None
  found = letters[0]
  before, after = text[: found.start()], text[found.end() :]
  if not found[2] and not _ends_with_choice(before):
    return None
  said = not after or _IS_RIGHT.fullmatch(after) or _AFTER.fullmatch(after)
  if _DOUBT.search(before):
    return None
  letter = found[1] or found[2]
  labelled = re.match(r"[.:]\s", after) or found.group().endswith(")")
  if said or not labelled:
    return letter.upper() if said else None
  return _unless_denied(letter, after[1:])


def _unless_denied(letter: str, after: str) -> str | None:
  """Returns the letter of a label, unless the text after it takes it back."""
  if _IS_RIGHT.fullmatch(after):
    return letter.upper()
  denied = _DENIED.match(after) or _ANOTHER.search(after)
  return None if denied else letter.upper()


def _ends_with_choice(before: str) -> bool:
  """Returns whether the text before a letter is blank or chooses it."""
  if not before.strip():
    return True
  return any(
      found.end() == len(before) for found in _CHOOSES.finditer(before)
  )


def _is_word(text: str, letter: re.Match[str]) -> bool:
  """Returns whether a capital is the article `A` or the pronoun `I`."""
  if letter.group() not in ("A", "I"):
    return False
  after = text[letter.end() :]
  if re.match(r"'|\s+[a-z]", after) is None:
    return False
  return not _IS_RIGHT.match(after)
