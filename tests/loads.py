"""How transformers, of any version, loads folders; a program for old versions.

  python tests/loads.py OUT.json FOLDER...
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # the other cores have other tests
TEXT = (
    "Ada has 5 boxes. 5 b + 1 = 6 <eos> so </think>\n<answer>6</answer>"
    "<|im_end|> ü 中"
)
TOKENS = np.random.default_rng(7).integers(3, 61, (2, 48)).tolist()


def described(place):
  """Logits, 8 greedy tokens, and what its tokenizers make of a text."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
      place, attn_implementation="eager", dtype="auto"
  ).eval()
  tokens = torch.tensor(TOKENS)
  with torch.no_grad():
    logits = model(tokens).logits.float()
  greedy = model.generate(
      tokens[:, :11], do_sample=False, max_new_tokens=8, eos_token_id=None
  )
  fast = transformers.PreTrainedTokenizerFast.from_pretrained(place)
  auto = transformers.AutoTokenizer.from_pretrained(place)
  message = [{"role": "user", "content": "Half of 4?"}]
  return {
      "logits": logits.tolist(),
      "greedy": greedy.tolist(),
      "dtype": str(model.config.dtype),
      "ends": model.generation_config.eos_token_id,
      "ids": fast(TEXT).input_ids,
      "text": fast.decode(fast(TEXT).input_ids),
      "auto": auto(TEXT).input_ids,
      "special": sorted(fast.all_special_tokens),
      "chat": fast.chat_template
      and fast.apply_chat_template(
          message, tokenize=False, add_generation_prompt=True
      ),
  }


def main(output, *places):
  found = {place: described(place) for place in places}
  found["version"] = transformers.__version__
  pathlib.Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
