"""Any fast tokenizer: BOS, chat templates, texts in pieces."""

import datetime

import numpy as np
import pytest
import tiny
import tokenizers
from tokenizers import processors

from iapo_jax.config import parsing as config_lib
from iapo_jax.config.data import ArithmeticConfig, DataConfig
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Vocabulary
from iapo_jax.data import arithmetic, pipeline, task
from iapo_jax.data.arithmetic import Piece
from iapo_jax.hf import folder, tokenizer

QWEN = tiny.SHARED / "qwen2_tokenizer"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} . {% endfor %}"
    "{% if add_generation_prompt %}so {% endif %}"
)


def words(template=None, pattern=None, extra=()):
  """The task's words, with a chat template or tokens around each text."""
  tok = tokenizer.word_tokenizer(
      [*arithmetic.vocabulary(ArithmeticConfig()), "user", *extra],
      pad="<pad>", eos="<eos>", unknown="<unk>",
  )  # fmt: skip
  tok.chat_template = template
  if pattern:
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern, special_tokens=[("so", 7), ("<eos>", 1)]
    )
  return tok


def saved(tok, place):
  tok.save_pretrained(place)
  return tokenizer.load(place)


def test_a_bos_opens_prompts_and_nothing_else(tmp_path):
  tok = saved(words(pattern="so $A"), tmp_path)
  assert tokenizer.encode(tok, "1 + 2") == tok.encode("1 + 2")[1:]
  assert tok.decode(tokenizer.encode_prompt(tok, "1 + 2")) == "so 1 + 2"
  data = DataConfig(max_prompt_tokens=4, overlong="truncate_left")
  table = pipeline.tokenise_prompts(
      tok, ["1 + 2 + 3", "1 + 2"], ["6", "3"], data, pad_id=0
  )
  # Of six tokens the two right after the BOS go.
  rows = [
      tok.decode(row[:n])
      for row, n in zip(
          table.prompts.tokens, table.prompts.lengths, strict=True
      )
  ]
  assert rows == ["so 2 + 3", "so 1 + 2"]
  assert table.truncated == 1
  assert tok.decode(table.prompts.gold[0]) == "6"


def test_a_text_with_its_bos_gets_no_other(tmp_path):
  """In scores and in data; one that only looks alike does."""
  tok = saved(words(pattern="so $A"), tmp_path)
  shown = [
      tok.decode(tokenizer.encode_prompt(tok, prompt))
      for prompt in ("1 + 2", "so 1 + 2", "so so 1", "1 so", "so", "")
  ]
  assert shown == ["so 1 + 2", "so 1 + 2", "so so 1", "so 1 so", "so", "so"]
  data = DataConfig(max_prompt_tokens=4, overlong="truncate_left")
  table = pipeline.tokenise_prompts(
      tok, ["so 1 + 2 + 3"], ["6"], data, pad_id=0
  )
  assert tok.decode(table.prompts.tokens[0]) == "so 2 + 3"


def test_a_tokenizer_that_ends_prompts_is_refused(tmp_path):
  tok = saved(words(pattern="$A <eos>"), tmp_path)
  with pytest.raises(ConfigError, match="adds tokens after a text"):
    tokenizer.encode_prompt(tok, "1 + 2")


def test_rules_of_chat_templates():
  for data, rule in (
      ({"chat_date": "yesterday"}, "must be a date, YYYY-MM-DD"),
      ({"chat_date": "20260101"}, "must be a date, YYYY-MM-DD"),
      ({"chat_template": True, "overlong": "truncate_left"}, "error or skip"),
  ):
    with pytest.raises(ConfigError, match=rule):
      config_lib.parse({"data": data})


def test_a_demonstration_that_does_not_fit():
  rule = "config.rollout.max_tokens = 3: a demonstration has 4 tokens"
  with pytest.raises(ConfigError, match=rule):  # three words and the EOS
    pipeline.tokenise_pieces(
        words(), [Piece("so so so", True)], 3, Vocabulary((1,), 0, (1,))
    )


def test_chat_templates(tmp_path):
  tok = saved(words(TEMPLATE, pattern="so $A"), tmp_path)
  message = {"role": "user", "content": "1 + 2"}
  rendered = tokenizer.render_chat(tok, [message], date="2026-01-01")
  assert rendered == "user 1 + 2 . so "
  with pytest.raises(ConfigError, match="has no chat template"):
    tokenizer.render_chat(words(), [], date="2026-01-01")
  broken = words("{{ raise_exception('only\n users') }}")
  with pytest.raises(ConfigError, match="chat template of '': only users"):
    tokenizer.render_chat(broken, [message], date="2026-01-01")
  dated = words("{{ strftime_now('%d %b %Y') }} so")
  shown = tokenizer.render_chat(dated, [message], date="2026-01-31")
  assert shown == "31 Jan 2026 so"  # whatever day it is


MESSAGES = [{"role": "user", "content": "1 + 2"}]
FORMATS = {
    # Worked out by hand for Monday, 5 January 2026.
    "%-d. %B %Y": "5. January 2026",
    "%F": "2026-01-05",
    "[%e]": "[ 5]",
    "%-m/%-d/%y": "1/5/26",
    "%D %T": "01/05/26 00:00:00",
    "%^a %j %U %V %u": "MON 005 01 02 1",
    "100%% of %d%%d, 50%": "100% of 05%d, 50%",
    "%Y%m%d": "20260105",
    "no date": "no date",
}


@pytest.mark.parametrize("form", FORMATS)
def test_every_directive_of_a_date(form):
  """Given as a literal and, as some templates do, as a variable."""
  tok = words(
      f"{{% set f = '{form}' %}}{{% macro m(x) %}}{{{{ strftime_now(x) }}}}"
      f"{{% endmacro %}}{{{{ strftime_now('{form}') }}}} | {{{{ m(f) }}}}"
  )
  shown = tokenizer.render_chat(tok, MESSAGES, date="2026-01-05")
  assert shown == f"{FORMATS[form]} | {FORMATS[form]}"
  assert datetime.date(2026, 1, 5).strftime(form) == FORMATS[form]


@pytest.mark.parametrize("form", ["%Q", "%10d", "%s"])
def test_directives_that_are_not_known_are_refused(form):
  tok = words(f"{{{{ strftime_now('a {form}') }}}}")
  rule = f"strftime_now cannot print {form[:3]}"
  with pytest.raises(ConfigError, match=rule):
    tokenizer.render_chat(tok, MESSAGES, date="2026-01-05")


def test_a_task_in_a_chat_template(tmp_path):
  """The reasoning opens after the template; its BOS is its own affair."""
  words(TEMPLATE, pattern="so $A").save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
  config = config_lib.default()
  config.data.update({"chat_template": True, "max_prompt_tokens": 20})
  loaded = tiny.load_task(config_lib.parse(config), tmp_path)
  table = loaded.tables["test"].prompts
  problem = loaded.problems["test"][0]
  question = problem.prompt.removesuffix(" <think>")
  shown = loaded.tokenizer.decode(table.tokens[0, : table.lengths[0]])
  assert shown == f"user {question} . so <think>"


@pytest.mark.parametrize("kind", ["metaspace", "prepend"])
def test_no_blank_is_invented_inside_a_sequence(tmp_path, kind):
  """SentencePiece tokenizers put one before each text, as if it began one."""
  pieces = ["<unk>", "▁", "▁so", "so", "▁a", "a", ".", "</think>"]
  backend = tokenizers.Tokenizer(
      tokenizers.models.WordLevel(
          {piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"
      )
  )
  if kind == "metaspace":
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        prepend_scheme="first"
    )
  else:
    backend.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend("▁"),
        tokenizers.normalizers.Replace(" ", "▁"),
    ])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        "▁", "merged_with_next"
    )
  backend.save(str(tmp_path / "tokenizer.json"))
  tok = tokenizer.load(tmp_path)
  names = tok.convert_ids_to_tokens
  assert names(tokenizer.encode_prompt(tok, "so a")) == ["▁so", "▁a"]
  assert names(tokenizer.encode(tok, "so a")) == ["so", "▁a"]
  assert names(tokenizer.encode(tok, " so")) == ["▁so"]


def test_a_reasoning_that_the_template_opens(tmp_path):
  """It is not opened twice."""
  template = TEMPLATE.replace("so {% endif %}", "<think> {% endif %}")
  words(template).save_pretrained(tmp_path)
  config = config_lib.default()
  config.data.update({"chat_template": True, "max_prompt_tokens": 20})
  loaded = tiny.load_task(config_lib.parse(config), tmp_path)
  table = loaded.tables["test"].prompts
  shown = loaded.tokenizer.decode(table.tokens[0, : table.lengths[0]])
  assert shown.count("<think>") == 1


def test_what_nobody_ends(tmp_path):
  backend = tokenizers.Tokenizer(
      tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
  )
  backend.save(str(tmp_path / "tokenizer.json"))
  tok = tokenizer.load(tmp_path)
  with pytest.raises(ConfigError, match="names an EOS token"):
    task.vocabulary_of(tok, "b", folder.Tokens((), None))
  found = task.vocabulary_of(tok, "b", folder.Tokens((1,), None))
  assert found == Vocabulary((1,), 1, (1,))


def test_what_ends_a_sentence(tmp_path):
  words = ["a", ".", "3.1", "no.", 'yes!"', "?)", "line\n", ",", "\n\n", "…"]
  tokenizers.Tokenizer(
      tokenizers.models.WordLevel({word: i for i, word in enumerate(words)})
  ).save(str(tmp_path / "tokenizer.json"))
  tok = tokenizer.load(tmp_path)
  assert task.sentence_ends(tok, 0) == (1, 3, 4, 5, 6, 8, 9)
  # A model that knows fewer tokens than the tokenizer.
  assert task.sentence_ends(tok, 5) == (1, 3, 4)
  rule = "has no token that ends a sentence or a line; use stride"
  with pytest.raises(ConfigError, match=rule):
    task.sentence_ends(tok, 1)


@pytest.mark.skipif(
    not QWEN.is_dir(),
    reason="the Qwen2 tokenizer is not part of the repository",
)
def test_pieces_whose_tokens_straddle():
  """Byte pairs: the blank before a word belongs to the word's token."""
  tok = tokenizer.load(QWEN)
  vocabulary = task.vocabulary_of(
      tok, "</think>\n<answer>", folder.Tokens((), None)
  )
  assert vocabulary.eos_ids == (151_645,)
  assert vocabulary.elicitation == (522, 26865, 397, 27, 9217, 29)
  parts = (("so total", False), (" yes", True), (" wait", False))
  pieces = [Piece(*part) for part in parts]
  record = pipeline.tokenise_pieces(tok, pieces, 8, vocabulary)
  ids = tokenizer.encode(tok, "so total yes wait")
  np.testing.assert_array_equal(
      record["completion"], [*ids, 151_645, *[151_643] * (7 - len(ids))]
  )
  learned = [tok.decode(i) for i in record["completion"][record["learned"]]]
  assert learned == [" yes"]
  # Far from the last token of the bound on a demonstration.
  config = config_lib.default()
  config.warm_start.num_steps = 1
  config.data.update({"max_prompt_tokens": 20, "max_gold_tokens": 2})
  with pytest.raises(ConfigError, match="counting 3 per word"):
    tiny.load_task(config_lib.parse(config), QWEN)
