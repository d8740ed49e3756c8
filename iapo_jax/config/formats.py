r"""Formats: how prompts and completions mark the reasoning and the answer.

A format is the value `config.format`; prompts, graders, probes, demonstrations
and the model card read it. Presets give the fields that a user leaves out:

  think_answer  <think>reasoning</think> <answer>answer</answer>
  thinker       <think>reasoning</think> a solution with \boxed{answer}
  boxed         a solution with \boxed{answer}; the model does not think
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from iapo_jax.config.fields import field, one_of

PRESETS = ("think_answer", "thinker", "boxed")
OPENERS = ("prompt", "model", "nobody")
BOX = "\\boxed{"
# The fields whose defaults a preset gives, by group.
OF_PRESET = {
    "format": (
        "opened_by", "think_open", "think_close", "answer_open",
        "answer_close", "instructions", "example",
    ),
    "data": ("prompt", "instructions", "chat_template"),
    "probe": ("elicitation",),
}  # fmt: skip
_BY_PRESET = "; by default the preset's"


@dataclasses.dataclass(frozen=True)
class FormatConfig:
  """The format of completions; the defaults are those of `think_answer`.

  In a configuration file a field of the preset is None until it is set.
  """

  preset: str = field(
      "think_answer",
      "think_answer (thinking, then the answer in tags), thinker (models that"
      " think by themselves: thinking, then a solution with \\boxed{}) or boxed"
      " (models that do not think: a solution with \\boxed{}); gives the"
      " defaults of the other fields, data.prompt, data.instructions,"
      " data.chat_template and probe.elicitation",
      one_of(*PRESETS),
  )
  opened_by: str = field(
      "prompt",
      "who opens the thinking: prompt (its template, or think_open is appended"
      " to it), model (the completion begins with think_open) or nobody (the"
      f" model does not think){_BY_PRESET}",
      one_of(*OPENERS),
  )
  think_open: str = field(
      "<think>",
      "text that opens the thinking; white space around it is appended to the"
      f" prompt, but not asked of a completion{_BY_PRESET}",
  )
  think_close: str = field(
      "</think>", f"text that ends the thinking{_BY_PRESET}"
  )
  answer_open: str = field(
      "<answer>", f"text before the answer, a tag or \\boxed{{{_BY_PRESET}"
  )
  answer_close: str = field(
      "</answer>", f"text after the answer{_BY_PRESET}"
  )
  instructions: str = field(
      "Think the problem through between <think> and </think>, then give"
      " nothing but the final answer between <answer> and </answer>.",
      f"what data.prompt instructed asks for{_BY_PRESET}",
  )
  example: bool = field(
      True,
      "whether data.prompt instructed shows a worked example before the"
      f" problem{_BY_PRESET}",
  )
  lenient: bool = field(
      False,
      "whether an answer outside the place that the format asks for is guessed"
      " from the text after the thinking; needs reward.grader host",
  )

  @property
  def thinks(self) -> bool:
    """Whether completions have a part that ends with `think_close`."""
    return self.opened_by != "nobody"

  @property
  def opener(self) -> str:
    """The mark that opens the thinking, without white space."""
    return self.think_open.strip()

  @property
  def closer(self) -> str:
    """The mark that ends the thinking, without white space."""
    return self.think_close.strip()

  @property
  def in_box(self) -> bool:
    r"""Whether the answer stands in `\boxed{}`, not between tags."""
    return self.answer_open == BOX

  @property
  def marks(self) -> tuple[str, ...]:
    r"""The marks that may occur only where the format has them, but the box."""
    thinking = (self.opener, self.closer)
    if self.in_box:
      return thinking
    return (*thinking, self.answer_open, self.answer_close)

  @property
  def before_reasoning(self) -> str:
    """The text that a completion writes before its reasoning."""
    return self.think_open if self.opened_by == "model" else ""

  @property
  def described(self) -> str:
    """One sentence about completions, for a model card."""
    opened = {
        "prompt": "The prompt opens the reasoning, which ends with"
        f" `{self.closer}`",
        "model": f"The completion opens its reasoning with `{self.opener}` and"
        f" ends it with `{self.closer}`",
        "nobody": "The completion is a solution without a separate part of"
        " reasoning",
    }[self.opened_by]
    place = "the last `\\boxed{}`" if self.in_box else f"`{self.answer_open}`"
    after = " after it" if self.thinks and self.in_box else ""
    return f"{opened}; the answer is in {place}{after}."


def of(preset: str) -> FormatConfig:
  """Returns the format of a preset."""
  return FormatConfig(**filled({"format": {"preset": preset}})["format"])


def elicitation_of(preset: str) -> str:
  """Returns the elicitation of a preset."""
  return filled({"format": {"preset": preset}})["probe"]["elicitation"]


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fills the fields of the preset that a nested configuration leaves out.

  A field is left out if it is missing or None. An unknown preset gives the
  fields of `think_answer`; the rule of the field refuses it later.
  """
  own = {group: values.get(group) or {} for group in OF_PRESET}
  if not all(isinstance(group, Mapping) for group in own.values()):
    return dict(values)  # refused later
  preset = own["format"].get("preset")
  preset = preset if preset in PRESETS else PRESETS[0]
  known = {x: y for x, y in own["format"].items() if y is not None}
  marks = _marks(preset) | known
  defaults = _texts(preset, {name: str(x) for name, x in marks.items()})
  defaults["format"] |= _marks(preset) | {"preset": preset}
  return dict(values) | {
      group: dict(given) | {
          name: value
          for name, value in defaults[group].items()
          if given.get(name) is None
      }
      for group, given in own.items()
  }  # fmt: skip


def default_of(config: Any, group: str, name: str) -> Any:
  """Returns the value that a field of the preset has if it is left out.

  Args:
    config: a `Config`, whose marks and preset count.
    group: the field's group.
    name: the field.
  """
  values = dataclasses.asdict(config)
  values[group][name] = None
  return filled(values)[group][name]


def _marks(preset: str) -> dict[str, str]:
  """Returns who opens the thinking, and the marks, of a preset."""
  marks = {
      "opened_by": "nobody" if preset == "boxed" else "prompt",
      "think_open": "<think>",
      "think_close": "</think>",
      "answer_open": "<answer>",
      "answer_close": "</answer>",
  }
  if preset == "think_answer":
    return marks
  return marks | {
      "think_open": "<think>\n", "answer_open": BOX, "answer_close": "}",
  }  # fmt: skip


def _texts(
    preset: str, marks: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
  """Returns the other fields of a preset by group, made from its marks."""
  opener, closer = (marks[x].strip() for x in ("think_open", "think_close"))
  before, after = marks["answer_open"], marks["answer_close"]
  if preset == "think_answer":
    told = (
        f"Think the problem through between {opener} and {closer}, then give"
        f" nothing but the final answer between {before} and {after}."
    )
    data = "plain", "system", False
    elicitation = f"{closer}\n{before}"
  else:
    # What the authors of thinking models ask users to ask.
    place = f"within {before}{after}"
    if before != BOX:
      place = f"between {before} and {after}"
    told = f"Please reason step by step, and put your final answer {place}."
    data = "instructed", "user", True
    ended = "" if marks["opened_by"] == "nobody" else f"\n{closer}"
    elicitation = f"{ended}\n\n**Final Answer**\n{before}"
  return {
      "format": {"instructions": told, "example": preset == "think_answer"},
      "data": dict(zip(OF_PRESET["data"], data, strict=True)),
      "probe": {"elicitation": elicitation},
  }
