"""Formats and chat templates: what fits, what is refused, what is advised."""

import copy
import functools

import numpy as np
import pytest
import templates
import texts

from iapo_jax.config import formats, parsing
from iapo_jax.config.data import chat_arguments
from iapo_jax.core.errors import ConfigError
from iapo_jax.data import (
  examples,
  fitting,
  pipeline,
  prompts,
  published,
  task,
)
from iapo_jax.hf import folder, tokenizer
from iapo_jax.rewards import host

ASKED = (
    "Please reason step by step, and put your final answer within \\boxed{}."
)
THINKER = "--config.format.preset=thinker"
BOXED = "--config.format.preset=boxed"
ON = "--config.data.chat_kwargs='{\"enable_thinking\": true}'"
OFF = "--config.data.chat_kwargs='{\"enable_thinking\": false}'"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  return tokenizer.load(texts.write_tokenizer(tmp_path_factory.mktemp("tok")))


def config_of(preset, form=None, **data):
  return parsing.parse({
      "format": {"preset": preset} | (form or {}),
      "data": {
          "task": "gsm8k", "chat_template": True, "prompt": "instructed",
      } | data,
      "reward": {"grader": "host"},
  })  # fmt: skip


def prompt_of(tok, template, preset, form=None, question="Q?", **data):
  """Checks a template and writes a prompt with it."""
  tok.chat_template = template
  cfg = config_of(preset, form, **data)
  fitting.check(tok, cfg.format, cfg.data)
  return prompts.of(
      question,
      source=published.DATA_SETS["gsm8k"],
      form=cfg.format,
      elicitation=cfg.probe.elicitation,
      data=cfg.data,
      render=functools.partial(
          tokenizer.render_chat,
          tok,
          date=cfg.data.chat_date,
          arguments=chat_arguments(cfg.data),
      ),
      other=fitting.other_preset(tok, cfg.format),
  )


FORM = "The answer is a single integer."
USER = f"[user]Q?\n\n{FORM} {ASKED}<eos>[assistant]"


@pytest.mark.parametrize(
    ("template", "preset", "more", "prompt"),
    [
        ("plain", "thinker", {}, f"{USER}<think>\n"),
        ("plain", "boxed", {}, USER),
        ("hybrid", "thinker", {}, f"{USER}<think>\n"),
        ("hybrid", "boxed", {"chat_kwargs": '{"enable_thinking": false}'},
         f"{USER}<think>\n\n</think>\n\n"),
        ("opened", "thinker", {}, f"{USER}<think>\n"),
        ("same_line", "thinker", {}, f"[system]You help.<eos>{USER}<think>"),
        ("same_line", "thinker", {"system": "Hi."},
         f"[system]Hi. No functions.<eos>{USER}<think>"),
        ("closed", "thinker", {"chat_kwargs": '{"enable_thinking": true}'},
         f"{USER}<think>\n"),
        ("closed", "boxed", {}, f"{USER}<think>\n\n</think>\n\n"),
        ("switched", "thinker", {},
         f"[system]01 January 2026 /think <eos>{USER}<think>\n"),
        ("switched", "boxed", {"system": "/no_think"},
         f"[system]01 January 2026 /no_think <eos>{USER}<think>\n\n</think>\n"),
        ("plain", "thinker", {"instructions": "system", "system": "Hi."},
         f"[system]Hi.\n\n{ASKED}<eos>[user]Q?\n\n{FORM}<eos>[assistant]"
         "<think>\n"),
        ("hybrid", "thinker", {"prompt": "plain"},
         "[user]Q?<eos>[assistant]<think>\n"),
        ("never", "boxed", {}, f"{USER}<think></think>"),
    ],
)  # fmt: skip
def test_prompts(words, template, preset, more, prompt):
  assert prompt_of(words, templates.ALL[template], preset, **more) == prompt


def test_the_model_may_open_the_thinking(words):
  """As Qwen3 does; then the prompt is what its card shows."""
  found = prompt_of(
      words, templates.HYBRID, "thinker", {"opened_by": "model"}
  )
  assert found == USER


def test_a_template_that_opens_the_thinking_keeps_a_worked_example(words):
  """Nothing is cut, so think_answer fits; the thinking is opened once."""
  found = prompt_of(words, templates.SAME_LINE, "think_answer")
  assert found.count("<think>Two and two make four.") == 0
  assert "<think>Two and two more make four.</think>\n<answer>4" in found
  assert found.endswith(f"{FORM}\n\nQ?<eos>[assistant]<think>")


@pytest.mark.parametrize(
    ("template", "preset", "more", "message"),
    [
        # The worked example is cut, or a tag: the preset that fits.
        ("hybrid", "think_answer", {},
         "config.format.preset = 'think_answer': the chat template leaves out"
         " part of '<think>Two and two more make four.</think>\\n<answer>4"
         f"</answer>'; use {THINKER}"),
        ("opened", "think_answer", {"instructions": "user"},
         f"<answer>4</answer>'; use {THINKER}"),
        # No system message where the model forbids it.
        ("opened", "think_answer", {}, "no system message, please"),
        # A closed empty block, and how to open it.
        ("closed", "thinker", {},
         "config.data.chat_kwargs = '': the chat template ends prompts in"
         " '[user]question<eos>[assistant]<think>\\n\\n</think>\\n\\n', which"
         f" closes the thinking before it begins; set {ON} or {BOXED}"),
        ("closed", "think_answer", {},
         f"before it begins; set {ON} or {BOXED}"),
        ("hybrid", "thinker", {"chat_kwargs": '{"enable_thinking": false}'},
         f"before it begins; set {ON} or {BOXED}"),
        ("switched", "thinker", {"system": "/no_think"},
         f"before it begins; set {BOXED}"),
        ("never", "thinker", {}, f"before it begins; set {BOXED}"),
        # A model that thinks in the format of one that does not.
        ("opened", "boxed", {},
         "config.format.preset = 'boxed': the chat template ends prompts in"
         " '[user]question<eos>[assistant]<think>\\n', which opens the"
         f" thinking; set {THINKER}"),
        ("hybrid", "boxed", {},
         f"lets the model think; set {THINKER} or {OFF}"),
        ("switched", "boxed", {},
         f"lets the model think; set {THINKER} or {OFF}"),
        ("closed", "boxed", {"chat_kwargs": '{"enable_thinking": true}'},
         f"opens the thinking; set {THINKER} or {OFF}"),
        # Arguments and messages without effect.
        ("hybrid", "thinker", {"chat_kwargs": '{"thinking": true}'},
         "config.data.chat_kwargs = '{\"thinking\": true}': the chat template"
         " has no argument thinking; it has enable_thinking"),
        ("plain", "boxed", {"chat_kwargs": '{"enable_thinking": false}'},
         "has no argument enable_thinking; it has none"),
        ("deaf", "thinker", {"system": "Hi."},
         "config.data.system = 'Hi.': the chat template ignores the system"
         " message; leave it out"),
        (None, "thinker", {}, "has no chat template; give prompts as text"),
    ],
)  # fmt: skip
def test_what_does_not_fit(words, template, preset, more, message):
  with pytest.raises(ConfigError) as error:
    prompt_of(words, templates.ALL.get(template), preset, **more)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def ways_out(words, template, preset, **data):
  """Returns the settings that the error names, as (preset, data)."""
  try:
    prompt_of(words, template, preset, **data)
  except ConfigError as error:
    ways = str(error).split("--config.")[1:]
  else:
    return []
  assert ways, "an error that names no way out"
  found = []
  for way in ways:
    field, _, value = way.partition("=")
    value = value.removesuffix(" or ").strip("'")
    if field == "format.preset":
      found.append((value, {k: data[k] for k in data if k != "instructions"}))
    else:
      assert field == "data.chat_kwargs"
      found.append((preset, data | {"chat_kwargs": value}))
  return found


def test_every_way_out_that_an_error_names_leads_out(words):
  """At once, or to an error whose ways lead out."""
  tried = 0
  for name, template in templates.ALL.items():
    for preset in ("think_answer", "thinker", "boxed"):
      # Without a system message, which some templates forbid or ignore.
      data = {"instructions": "user"}
      for way, settings in ways_out(words, template, preset, **data):
        tried += 1
        for last, others in ways_out(words, template, way, **settings):
          assert not ways_out(words, template, last, **others), (name, preset)
  assert tried >= 10


def test_without_a_chat_template_the_prompt_is_text(words):
  """A model whose card wants <think>, but whose template is missing."""
  words.chat_template = None
  cfg = config_of("thinker", chat_template=False)
  fitting.check(words, cfg.format, cfg.data)
  found = prompts.of(
      "Q?", source=published.DATA_SETS["gsm8k"], form=cfg.format,
      elicitation=cfg.probe.elicitation, data=cfg.data, render=None,
  )  # fmt: skip
  assert found == f"Q?\n\n{FORM} {ASKED}\n<think>\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"chat_kwargs": "[1]"}},
         'chat_kwargs = \'[1]\': must be a JSON object such as'),
        ({"data": {"chat_kwargs": "{"}}, "must be a JSON object"),
        ({"data": {"chat_kwargs": '{"messages": []}'}},
         "messages is already given"),
        ({"data": {"system": "Hi.", "chat_template": False}},
         "data.system = 'Hi.': needs data.chat_template true"),
        ({"format": {"think_open": " "}},
         "think_open = ' ': must not be blank"),
        ({"format": {"answer_open": "<think"}},
         "must not be a part of another mark"),
        ({"format": {"answer_close": "}"}},
         "answer_close = '}': must be } with format.answer_open \\boxed{"),
        ({"format": {"preset": "thinking"}},
         "must be one of think_answer, thinker, boxed"),
        ({"format": {"preset": "thinker"}, "data": {"task": "arithmetic"}},
         "must be think_answer with data.task arithmetic"),
        ({"format": {"preset": "thinker"},
          "reward": {"grader": "token_match"}}, "needs reward.grader host"),
        ({"format": {"lenient": True}, "reward": {"grader": "token_match"}},
         "lenient = True: needs reward.grader host"),
        ({"format": {"example": False}, "data": {"prompt": "plain"}},
         "format.example = False: needs data.prompt instructed"),
        ({"format": {"instructions": "Go."}},
         "format.instructions = 'Go.': needs data.prompt instructed"),
    ],
)  # fmt: skip
def test_rules_of_a_format(values, message):
  values = {"reward": {"grader": "host"}} | values
  values["data"] = {"task": "gsm8k"} | values.get("data", {})
  if "chat_kwargs" in values["data"]:
    values["data"]["chat_template"] = True
  with pytest.raises(ConfigError) as error:
    parsing.parse(values)
  assert message in str(error.value)


def test_a_preset_gives_what_is_left_out():
  config = parsing.default()
  config.format.preset = "thinker"
  config.format.think_close = "[/THINK]"
  config.data.task = "gsm8k"
  config.reward.grader = "host"
  c = parsing.parse(config)
  assert (c.data.prompt, c.data.instructions) == ("instructed", "user")
  assert c.data.chat_template
  # Made from the mark that was set.
  assert c.probe.elicitation == "\n[/THINK]\n\n**Final Answer**\n\\boxed{"
  assert parsing.checked(c) == c
  config.data.prompt = "plain"
  config.probe.elicitation = "So "
  c = parsing.parse(config)
  assert (c.data.prompt, c.probe.elicitation) == ("plain", "So ")
  assert parsing.parse(parsing.default()) == parsing.Config()


@pytest.mark.parametrize(
    ("preset", "elicitation", "rule"),
    [
        ("thinker", "\n\n\\boxed{",
         "it must contain '\\\\boxed{' after '</think>'"),
        ("thinker", "</think>\nSo ",
         "makes worked solutions such as 'So it is 4."),
        ("boxed", "\nSo ", "which do not have the format"),
        ("think_answer", "</think>\nSo \\boxed{", "it must contain '<answer>'"),
    ],
)  # fmt: skip
def test_an_elicitation_that_would_teach_another_format(
    preset, elicitation, rule
):
  with pytest.raises(ConfigError) as error:
    examples.check(formats.of(preset), elicitation)
  assert "config.probe.elicitation = " in str(error.value)
  assert rule in str(error.value)
  examples.check(formats.of(preset), formats.elicitation_of(preset))


def test_the_plan_shows_the_prompt_and_what_asks_early(words):
  words.chat_template = templates.PLAIN
  cfg = config_of("thinker", max_prompt_tokens=400, max_gold_tokens=6)
  vocabulary = task.vocabulary_of(
      words, cfg.probe.elicitation, folder.Tokens((), None), chat=True
  )
  shown = prompt_of(words, templates.PLAIN, "thinker")
  table = pipeline.tokenise_prompts(
      words, [shown], ["4"], cfg.data, pad_id=vocabulary.pad_id
  )
  prompt, warning, asks = fitting.describe(
      words, cfg.format, cfg.probe.elicitation, vocabulary, table
  )
  assert prompt == (
      f"prompt     ends ...{shown[-60:]!r}; the prompt opens the thinking"
  )
  assert warning.startswith("warning: neither chat template nor tokenizer has")
  assert asks.startswith("asks       '\\n</think>\\n\\n**Final Answer**\\n")
  pieces = asks.partition(", tokens ")[2].split(", ")
  assert len(pieces) == len(vocabulary.elicitation)
  words.chat_template = templates.OPENED
  told = fitting.describe(
      words, cfg.format, cfg.probe.elicitation, vocabulary, table
  )
  assert len(told) == 2  # the template knows <think>


def test_a_special_token_that_ends_the_thinking_is_text(words):
  """Qwen3's </think> is an added token; here it is even a special one."""
  tok = copy.deepcopy(words)
  tok.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
  ids = tokenizer.encode(tok, "so</think>\\boxed{4}")
  assert tok.convert_tokens_to_ids("</think>") in ids
  assert tok.decode(ids, skip_special_tokens=True) == "so\\boxed{4}"
  columns = host.grade_tokens(
      tok,
      np.array([ids], np.int32),
      np.array([len(ids)], np.int32),
      np.zeros(1, bool),
      np.array([tokenizer.encode(tok, "4")], np.int32),
      np.ones(1, np.int32),
      form=formats.of("thinker"),
  )
  # Right, well formed, and the reasoning ends before </think>.
  before = ids.index(tok.convert_tokens_to_ids("</think>"))
  assert [x.tolist() for x in columns] == [[True], [True], [before], [False]]
