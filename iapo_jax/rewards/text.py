r"""Checks the format of completions and finds their answers.

Completions are untrusted, so every function takes linear time.

The prompt opens `<think>`, so a completion begins inside the reasoning. It is
well formed if it reads

    reasoning </think> <answer> answer </answer>

with only white space between and after the tags, no further tag, and neither
part blank. The answer stands between the last `<answer>` and `</answer>` that
have no other answer tag between them, or in the last `\boxed{...}` there.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)

_TAGS = re.compile(r"</?(?:think|answer)>")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_MOST_PROSE = 1000
_SHORT = 40
_TOLD = re.compile(r"\banswer\s*(?:is(?![a-z])|:|=)\s*:?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:[^\n.]|\.(?=\S))*")
_LAST_NUMBERS = re.compile(r"[-−]?\d+(?:[.,/]\d+)*")


def is_well_formed(text: str) -> bool:
  """Returns whether a completion, without EOS, has the required format."""
  tags = list(_TAGS.finditer(text))
  if [t.group() for t in tags] != [THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]:
    return False
  think, opening, closing = tags
  reasoning = text[: think.start()]
  between = text[think.end() : opening.start()]
  answer = text[opening.end() : closing.start()]
  after = text[closing.end() :]
  blank = [not part.strip() for part in (reasoning, between, answer, after)]
  return blank == [False, True, False, True]


def extract_answer(text: str) -> str | None:
  """Returns the last complete answer in tags, stripped; None if none."""
  answer, opened = None, None
  for tag in _TAGS.finditer(text):
    if tag.group() == ANSWER_OPEN:
      opened = tag.end()
    elif tag.group() == ANSWER_CLOSE:
      if opened is not None:
        answer = text[opened : tag.start()].strip()
      opened = None
  return answer


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer of a text.

  Attributes:
    text: stripped and not blank.
    prose: the text in which an answer without tags or box was guessed, at most
      its last 1000 characters; empty for an answer in tags or a box.
  """

  text: str
  prose: str = ""


def find_answer(text: str, *, need_tags: bool) -> Answer | None:
  r"""Finds the answer of a text; None if it is missing or blank.

  The answer is the content of the last complete `<answer>...</answer>`, or of
  the last complete `\boxed{...}` in it. In a text without any answer tag, the
  part after the last `</think>` is searched: for the last `\boxed{...}`, else
  for the text after the last "answer is", else the whole part if it is one
  short line, else for the last number.

  Args:
    text: a completion without EOS, or any other text.
    need_tags: whether the answer must stand in answer tags.
  """
  answer = extract_answer(text)
  tagged = answer is not None
  if not tagged:
    if need_tags or ANSWER_OPEN in text or ANSWER_CLOSE in text:
      return None
    answer = text.rpartition(THINK_CLOSE)[2]
  boxed = last_boxed(answer)
  answer = (answer if boxed is None else boxed).strip()
  if not answer:
    return None
  if tagged or boxed is not None:
    return Answer(answer)
  return Answer(_guess(answer[-_MOST_PROSE:]), answer[-_MOST_PROSE:])


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
  found = None
  opened: list[tuple[int, bool]] = []  # start, and whether it is a box
  innermost = -1  # start of the last complete box
  for brace in _BRACES.finditer(text):
    token = brace.group()
    if token == "}" and opened:
      start, is_box = opened.pop()
      if is_box and innermost < start:
        found, innermost = text[start : brace.start()], start
    elif token.endswith("{") and not token.startswith("\\{"):
      opened.append((brace.end(), token != "{"))
  return found


def reasoning_length(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> int:
  """Returns R, the number of tokens that end before `</think>` begins.

  Byte-pair vocabularies merge tags with their neighbours, so the boundary is
  found in the text. A token across the boundary is not reasoning. Without
  `</think>` every token is reasoning.

  Bisects: decodes O(log n) prefixes of n tokens. Exact for every tokenizer in
  which an unfinished character hides what `_shown` describes, and no more.

  Args:
    ids: the tokens of a completion, without EOS.
    decode: maps tokens to text.
  """
  whole = decode(ids)
  boundary = whole.find(THINK_CLOSE)
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
