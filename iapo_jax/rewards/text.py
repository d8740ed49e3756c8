r"""Checks the format of completions and finds their answers.

Completions are untrusted, so every function takes linear time. A format
(`config.format`) says which marks a completion has. With thinking, it is well
formed if it reads

    reasoning </think> <answer> answer </answer>
    reasoning </think> a solution with one \boxed{answer}

where the prompt opens the thinking; where the model does, `<think>` comes
first. Without thinking it is text with the answer in it, as after `</think>`.
There is only white space around tags, no further mark, and no part is blank.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

from iapo_jax.config.formats import FormatConfig

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_MOST_PROSE = 1000
_SHORT = 40
_TOLD = re.compile(r"\banswer\s*(?:is(?![a-z])|:|=)\s*:?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:[^\n.]|\.(?=\S))*")
_LAST_NUMBERS = re.compile(r"[-−]?\d+(?:[.,/]\d+)*")


@functools.lru_cache(maxsize=8)
def _pattern(form: FormatConfig) -> re.Pattern[str]:
  """Returns a pattern of the format's marks, but the box."""
  longest_first = sorted(form.marks, key=len, reverse=True)
  return re.compile("|".join(map(re.escape, longest_first)))


def is_well_formed(text: str, form: FormatConfig) -> bool:
  """Returns whether a completion, without EOS, has the required format."""
  marks = list(_pattern(form).finditer(text))
  before = [form.opener] if form.opened_by == "model" else []
  expected = [*before, *([form.closer] if form.thinks else [])]
  if not form.in_box:
    expected += [form.answer_open, form.answer_close]
  if [mark.group() for mark in marks] != expected:
    return False
  ends = [0, *(mark.end() for mark in marks)]
  starts = [*(mark.start() for mark in marks), len(text)]
  parts = [
      text[end:start].strip() for end, start in zip(ends, starts, strict=True)
  ]
  if before and parts.pop(0):
    return False
  if form.in_box:
    return all(parts) and _has_one_box(parts[-1])
  *reasoning, answer, after = parts
  between = reasoning[1:] if form.thinks else []
  return bool(reasoning[0] and answer) and not any((*between, after))


def extract_answer(text: str, form: FormatConfig) -> str | None:
  """Returns the last complete answer in tags, stripped; None if none."""
  found = _last_tagged(text, form)
  return None if found is None else text[found[1] : found[2]].strip()


def _last_tagged(
    text: str, form: FormatConfig
) -> tuple[int, int, int] | None:
  """Returns where the last complete answer's opening tag and text begin, end.

  An answer has no other answer tag in it.
  """
  found, opened = None, None
  for tag in _pattern(form).finditer(text):
    if tag.group() == form.answer_open:
      opened = tag
    elif tag.group() == form.answer_close:
      if opened is not None:
        found = opened.start(), opened.end(), tag.start()
      opened = None
  return found


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer of a text.

  Attributes:
    text: stripped and not blank.
    prose: the text in which an answer without tags or box was guessed, at most
      its last 1000 characters; empty for an answer in tags or a box.
    asked: whether it stands where the format asks for it.
  """

  text: str
  prose: str = ""
  asked: bool = True


def find_answer(
    text: str, form: FormatConfig, *, lenient: bool
) -> Answer | None:
  r"""Finds the answer of a text; None if it is missing or blank.

  In a format with tags the answer is the content of the last complete
  `<answer>...</answer>`, or of the last complete `\boxed{...}` in it. Otherwise
  it is the last complete `\boxed{...}` after the thinking.

  A lenient search takes a text that has no such mark: it searches the part
  after the last `</think>` for the last `\boxed{...}`, else for the text after
  the last "answer is", else takes the whole part if it is one short line, else
  the last number.

  Args:
    text: a completion without EOS, or any other text.
    form: the format that was asked for.
    lenient: whether an answer may stand elsewhere.
  """
  if not form.in_box:
    tagged = extract_answer(text, form)
    if tagged is not None:
      boxed = last_boxed(tagged)
      return _stated(tagged if boxed is None else boxed)
    if form.answer_open in text or form.answer_close in text:
      return None
    part = text.rpartition(form.closer)[2]
  elif (span := _answer_part(text, form)) is None:
    return None
  else:
    part = text[slice(*span)]
  boxed = last_boxed(part)
  if boxed is not None and (form.in_box or lenient):
    return _stated(boxed, asked=form.in_box)
  part = part.strip()
  if not lenient or not part:
    return None
  prose = part[-_MOST_PROSE:]
  return Answer(_guess(prose), prose, asked=False)


def _stated(answer: str, *, asked: bool = True) -> Answer | None:
  answer = answer.strip()
  return Answer(answer, asked=asked) if answer else None


def _answer_part(text: str, form: FormatConfig) -> tuple[int, int] | None:
  """Returns begin and end of the text after the thinking.

  A second thinking is no part of it. None if the thinking has not ended.
  """
  closed = text.rfind(form.closer)
  if closed < 0 and form.thinks:
    return None
  begin = 0 if closed < 0 else closed + len(form.closer)
  reopened = text.find(form.opener, begin)
  return begin, len(text) if reopened < 0 else reopened


def _guess(prose: str) -> str:
  """Guesses the answer of a text that has neither answer tags nor a box."""
  told = list(_TOLD.finditer(prose))
  if told and (said := _SENTENCE.match(prose, told[-1].end()).group().strip()):
    return said
  if "\n" not in prose and len(prose) <= _SHORT:
    return prose
  found = _LAST_NUMBERS.findall(prose)
  return found[-1] if found else prose


def last_boxed(text: str) -> str | None:
  r"""Returns the content of the last complete innermost `\boxed{...}`."""
  found = _last_box(text)
  return None if found is None else text[found[1] : found[2]]


def _last_box(text: str) -> tuple[int, int, int] | None:
  """Returns where the last complete innermost box and its text begin, end."""
  found = None
  opened: list[tuple[int, int]] = []  # start of a box or -1, and of its text
  innermost = -1  # start of the text of the last complete box
  for brace in _BRACES.finditer(text):
    token = brace.group()
    if token == "}" and opened:
      box, start = opened.pop()
      if box >= 0 and innermost < start:
        found, innermost = (box, start, brace.start()), start
    elif token.endswith("{") and not token.startswith("\\{"):
      opened.append((-1 if token == "{" else brace.start(), brace.end()))
  return found


def _has_one_box(text: str) -> bool:
  """Returns whether a text has one box, complete and not blank."""
  found = [x for x in _BRACES.findall(text) if x.endswith("{") and len(x) > 2]
  return len(found) == 1 and bool((last_boxed(text) or "").strip())


def _end_of_reasoning(text: str, form: FormatConfig) -> int:
  """Returns where the mark that ends the reasoning begins; -1 without it.

  Without thinking the answer ends the reasoning.
  """
  if form.thinks:
    return text.find(form.closer)
  begin, end = _answer_part(text, form)
  if form.in_box:
    found = _last_box(text[begin:end])
  else:
    begin, found = 0, _last_tagged(text, form)
  return -1 if found is None else begin + found[0]


def reasoning_length(
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    form: FormatConfig,
) -> int:
  """Returns R, the number of tokens that end before the reasoning ends.

  The reasoning ends where `</think>` begins, or, in a format without thinking,
  the last complete answer. Byte-pair vocabularies merge marks with their
  neighbours, so the boundary is found in the text. A token across the boundary
  is not reasoning. Without the mark every token is reasoning.

  Bisects: decodes O(log n) prefixes of n tokens. Exact for every tokenizer in
  which an unfinished character hides what `_shown` describes, and no more.

  Args:
    ids: the tokens of a completion, without EOS.
    decode: maps tokens to text.
    form: the format.
  """
  whole = decode(ids)
  boundary = _end_of_reasoning(whole, form)
  if boundary < 0:
    return len(ids)
  begun = whole[: boundary + 1]
  low, high = 0, len(ids)  # low tokens do not show `begun`, high tokens do
  while high - low > 1:
    middle = (low + high) // 2
    if shown := _shown(begun, ids[:middle], decode):
      high = shown
    else:
      low = middle
  return high - 1


def _shown(
    begun: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> int:
  """Returns the length of the longest prefix whose text starts with `begun`.

  0 if there is none. A prefix that ends inside a character can hide text: a
  byte-level decoder writes one replacement character at the end; a
  byte-fallback decoder writes one for each byte token before it, even where
  these are complete characters. A character has at most four bytes, so at most
  three texts in a row are hidden. Tokens without text repeat a text.
  """
  count = len(ids)
  for _ in range(4):
    text = decode(ids[:count])
    if text.startswith(begun):
      return count
    if begun.startswith(text[:-1]):
      return 0  # a single replacement character hides no other
    count = _with_other_text(text, ids[:count], decode)
  return 0


def _with_other_text(
    text: str, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> int:
  """Returns the length of the longest prefix that decodes to another text."""
  low, same, step = 0, len(ids), 1
  while same - low > 1:
    middle = max(same - step, (low + same) // 2)
    if decode(ids[:middle]) == text:
      same, step = middle, 2 * step
    else:
      low = middle
  return low
