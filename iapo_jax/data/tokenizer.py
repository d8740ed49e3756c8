"""Fast tokenizers: any pretrained one, and one of words for synthetic tasks.

The text that a chat template or a completion is made of is data: what it holds
of special tokens' names is read as those tokens.
"""

import pathlib
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from iapo_jax.errors import ConfigError

_FILE = "tokenizer.json"


def word_tokenizer(
    words: Sequence[str], *, pad: str, eos: str, unknown: str
) -> PreTrainedTokenizerFast:
  """One token a word, words apart by white space.

  Args:
    words: the vocabulary in the order of its ids.
    pad: the padding word.
    eos: the word that ends a completion.
    unknown: what stands for any other word.

  Returns:
    A Hugging Face fast tokenizer; `save_pretrained` writes it.
  """
  ids = {word: i for i, word in enumerate(words)}
  backend = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=unknown))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
      tokenizer_object=backend,
      pad_token=pad,
      eos_token=eos,
      unk_token=unknown,
      clean_up_tokenization_spaces=False,
  )


def load(folder: pathlib.Path) -> PreTrainedTokenizerFast:
  """The fast tokenizer of a Hugging Face folder, exactly as its file says.

  `AutoTokenizer` may build another one from parts of the file, going by the
  model's type; the file is what the model was trained with.

  Args:
    folder: with a tokenizer.json.

  Returns:
    The tokenizer.

  Raises:
    ConfigError: where there is no such file, or it cannot be read.
  """
  if not (folder / _FILE).is_file():
    raise ConfigError(f"{str(folder)!r}: has no {_FILE} (a fast tokenizer)")
  try:
    return PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, clean_up_tokenization_spaces=False
    )
  except Exception as error:  # the tokenizers library raises plain exceptions
    text = " ".join(str(error).split())
    raise ConfigError(f"{folder / _FILE}: cannot be read ({text})") from error


def encode(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """The tokens of a text and no others."""
  return tok.encode(text, add_special_tokens=False)


def encode_prompt(tok: PreTrainedTokenizerFast, text: str) -> list[int]:
  """The tokens of a text that begins a sequence, after a BOS if there is one.

  Args:
    tok: the tokenizer.
    text: without a chat template; that writes its own BOS.

  Returns:
    The tokens.

  Raises:
    ConfigError: where the tokenizer also adds tokens after the text.
  """
  ids, plain = tok.encode(text, add_special_tokens=True), encode(tok, text)
  if ids[len(ids) - len(plain) :] != plain:
    raise ConfigError(
        f"tokenizer {tok.name_or_path!r}: ends texts with tokens of its own,"
        " which would end a prompt, too; use a chat template"
    )
  return ids


def render_chat(
    tok: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]]
) -> str:
  """Messages by the tokenizer's chat template, up to where a reply begins.

  Args:
    tok: the tokenizer.
    messages: each with `role` and `content`.

  Returns:
    The text.

  Raises:
    ConfigError: where there is no template, or it refuses the messages.
  """
  if not tok.chat_template:
    raise ConfigError(f"tokenizer {tok.name_or_path!r}: has no chat template")
  try:
    return tok.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )
  except Exception as error:  # templates raise what they like
    text = " ".join(str(error).split())
    raise ConfigError(f"chat template: {text}") from error
