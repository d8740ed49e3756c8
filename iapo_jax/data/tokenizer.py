"""Fast tokenizers: a word-level one for synthetic tasks, saved like any."""

from collections.abc import Sequence

import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


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
