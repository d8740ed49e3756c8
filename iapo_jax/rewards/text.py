r"""Format and answers of texts. Completions are untrusted: all is linear.

The prompt opens `<think>`, so a completion begins inside the reasoning and is
well formed when it reads

    reasoning </think> <answer> answer </answer>

with nothing but white space between and after the tags, no further tag, and
neither part blank. The answer is what stands between the last `<answer>` and
`</answer>` that have no other answer tag between them, or in there the last
`\boxed{...}`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"

_TAGS = re.compile(r"</?(?:think|answer)>")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_MOST_PROSE = 1000
_SHORT = 40
_TOLD = re.compile(r"\banswer\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?:[^\n.]|\.(?=\S))*")
_LAST_NUMBERS = re.compile(r"[-−]?\d+(?:[.,/]\d+)*")


def is_well_formed(text: str) -> bool:
  """Whether a completion has the asked-for format.

  Args:
    text: the decoded completion without its EOS.

  Returns:
    Whether it is well formed.
  """
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
  """The last complete answer, stripped; None where there is none.

  Args:
    text: the decoded completion without its EOS.

  Returns:
    The answer's text.
  """
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
  """A text's answer.

  Attributes:
    text: it, stripped; not blank.
    prose: where nothing marks the answer, the text that it was found in, or
      its end.
  """

  text: str
  prose: str = ""


def find_answer(text: str, *, need_tags: bool) -> Answer | None:
  r"""The answer of a text.

  Args:
    text: any, without an EOS.
    need_tags: whether it must stand in answer tags.

  Returns:
    The content of the last complete answer, or of the last complete
    `\boxed{...}` in it. Of a text without any answer tag, and after its last
    `</think>`, that of the last `\boxed{...}`; else what follows its last
    "answer is", the whole of one short line, or its last number. None where
    there is none, or a blank one.
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
  """What a text without marks seems to answer."""
  told = list(_TOLD.finditer(prose))
  if told and (said := _SENTENCE.match(prose, told[-1].end()).group().strip()):
    return said
  if "\n" not in prose and len(prose) <= _SHORT:
    return prose
  found = _LAST_NUMBERS.findall(prose)
  return found[-1] if found else prose


def last_boxed(text: str) -> str | None:
  r"""The content of the last complete `\boxed{...}` without another in it.

  Args:
    text: any.

  Returns:
    The content; None where there is none.
  """
  found = None
  opened: list[tuple[int, bool]] = []  # where, and whether it is a box
  innermost = -1  # where the last complete box began
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
  """R: how many tokens end before the text `</think>` begins.

  Tags merge with their neighbours in byte-pair vocabularies, so the boundary
  is found in the text; a token that straddles it is not reasoning.

  Args:
    ids: the completion's tokens without its EOS.
    decode: tokens to text; the text of a prefix is never longer than the
      text of more tokens.

  Returns:
    The number of reasoning tokens; all where there is no `</think>`.
  """
  boundary = decode(ids).find(THINK_CLOSE)
  if boundary < 0:
    return len(ids)
  low, high = 0, len(ids)
  while low < high:
    middle = (low + high + 1) // 2
    if len(decode(ids[:middle])) <= boundary:
      low = middle
    else:
      high = middle - 1
  return low
