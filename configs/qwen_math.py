"""The paper's training: a Qwen2.5-Instruct model on mathematics.

  python experiments/run.py --config=configs/qwen_math.py
  python experiments/run.py --config=configs/qwen_math.py:1.5b-math500-to_go

A variant joins these words by `-`, in any order; each may be left out: a size
(`0.5b`, default; `1.5b`; `7b`), a data set (`gsm8k`, default; `math500`;
`dapo`) and a method of docs/method.md, such as `paper` (default), `to_go` (this
project's extension), `grpo`, `faithful` (the authors' formulas) or
`length_penalty` (the control). Model and data are downloaded. Without a
network, use local folders:

  --config.model.pretrained=FOLDER --config.data.source_dir=FOLDER

Settings from the paper and its code:

* learning rate 1e-6, Adam (0.9, 0.99), gradients clipped to norm 1;
* 8 completions per prompt at temperature 1, of at most 2,048 tokens; 96
  completions per step (128 for `7b`); prompts of at most 512 tokens;
* clip 0.2 / 0.28, token mean, KL weight 0.001, bfloat16, seed 42;
* the authors' weights of information and exploration for each model and data
  set;
* of the five checkpoints with the best validation accuracy, the one with the
  best pass@32 / length@32;
* the published splits of GSM8K; 80 % train and 20 % test of MATH-500 and of the
  first 7,000 problems of DAPO-Math-17k; 50 validation problems.

Differences from the paper:

* Probes are exact and end with the reasoning (docs/method.md).
* The prompt opens the reasoning, so completions begin inside it.
* Answers are compared by meaning, not by spelling.
* The words of the prompts are ours.
* No prompt is cut: MATH-500 allows 1,024 tokens, and longer prompts of DAPO are
  skipped and counted.
* No validation problem is a test problem.
* Repeated problems of DAPO count once.
* The authors' number of steps is unknown. Here it is one pass over the train
  problems, and four for MATH-500.

Hardware: the run first prints its plan with the memory of each device; with
--dry_run it prints only that. 12 prompts per step divide over 1, 2 or 4
devices; with 8 devices add --config.mesh.tensor=2. `7b` shards its weights over
all devices and expects 8 of 80 GB. `0.5b` on one device needs 80 GB; 40 GB with
--config.loss.micro_batches=8, and 24 GB with --config.loss.micro_batches=24. On
one H200 a step with completions of 1,024 tokens took 8.3 s.

Verified: with the configuration of Qwen2.5-0.5B and random weights, this file
takes two steps on the text of GSM8K, on a CPU with two layers and on a GPU with
all layers (docs/first_hour.md has the commands). tests/test_recipes.py does the
same with a smaller model of the family. Not verified: published weights, TPUs,
several GPUs, and what the policy learns.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """Returns a variant of `math` for this family."""
  return presets.read("math")["get_config"](variant, family="qwen")
