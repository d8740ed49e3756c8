"""A small data set of word problems, and a tokenizer for it."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def row(i):
  """In GSM8K's form; every seventh answer has thousands."""
  count, each = i + 2, 3 + i % 5
  if i % 7 == 0:
    each = 1500
  total = count * each
  return {
      "question": f"Ada has {count} boxes of {each} nails. How many nails?",
      "answer": (
          f"Each box has {each} nails.\nThere are {count} * {each} ="
          f" <<{count}*{each}={total}>>{total} nails.\n#### {total:,}"
      ),
  }


def write_jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(text, encoding="utf-8")


def write_gsm8k(folder, train=32, test=8):
  """A folder as `config.data.source_dir` takes it."""
  write_jsonl(folder / "gsm8k" / "train.jsonl", map(row, range(train)))
  write_jsonl(
      folder / "gsm8k" / "test.jsonl", map(row, range(train, train + test))
  )
  return folder


def write_tokenizer(folder, vocab_size=400):
  """A byte-level byte-pair tokenizer, as Qwen's, in a folder."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=list(SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  corpus = [text for i in range(40) for text in row(i).values()]
  corpus += ["so.</think>\n<answer>6</answer>"] * 20
  backend.train_from_iterator(corpus, trainer)
  tok = PreTrainedTokenizerFast(
      tokenizer_object=backend,
      pad_token=SPECIAL[0],
      eos_token=SPECIAL[2],
      chat_template=CHAT,
      clean_up_tokenization_spaces=False,
  )
  tok.save_pretrained(folder)
  return folder
