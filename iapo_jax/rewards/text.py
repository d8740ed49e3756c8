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
  """Where a text's answer is.

  Attributes:
    text: it, stripped; not blank.
    prose: whether it is only somewhere in there.
  """

  text: str
  prose: bool


def find_answer(text: str, *, need_tags: bool) -> Answer | None:
  r"""The answer of a text.

  Args:
    text: any, without an EOS.
    need_tags: whether it must stand in answer tags.

  Returns:
    The content of the last complete answer, or of the last complete
    `\boxed{...}` in it. Of a text without any answer tag that of the last
    `\boxed{...}` after the last `</think>`, else all that is there, as prose.
    None where there is none, or a blank one.
  """
  answer, prose = extract_answer(text), False
  if answer is None:
    if need_tags or ANSWER_OPEN in text or ANSWER_CLOSE in text:
      return None
    answer, prose = text.rpartition(THINK_CLOSE)[2], True
  boxed = last_boxed(answer)
  if boxed is not None:
    answer, prose = boxed, False
  elif prose and len(answer) > _MOST_PROSE:
    answer = answer[-_MOST_PROSE:]
  answer = answer.strip()
  return Answer(answer, prose) if answer else None


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
