"""experiments/run.py, which also writes down what this process graded.

It checks that the row of each problem is the one with its answer.

  train_together.py GRADED FLAGS...
"""

import hashlib
import pathlib
import runpy
import sys

from iapo_jax.rewards import host

ROOT = pathlib.Path(__file__).parent.parent


def main(graded):
  grade_tokens = host.grade_tokens

  def writing(
      tokenizer, tokens, lengths, ended, gold, gold_lengths, rows, **more
  ):
    for ids, length, row in zip(gold, gold_lengths, rows, strict=True):
      answer = more["asked"][row].columns["answer"]
      assert tokenizer.decode(ids[:length]).strip() == answer
    with open(graded, "a", encoding="utf-8") as file:
      for row, length in zip(tokens, lengths, strict=True):
        print(hashlib.sha256(row[:length].tobytes()).hexdigest(), file=file)
    return grade_tokens(
        tokenizer, tokens, lengths, ended, gold, gold_lengths, rows, **more
    )

  host.grade_tokens = writing
  runpy.run_path(str(ROOT / "experiments" / "run.py"), run_name="__main__")


if __name__ == "__main__":
  main(sys.argv.pop(1))
