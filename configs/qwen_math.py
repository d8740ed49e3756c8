"""The paper's training: Qwen2.5-Instruct on mathematics, one model at a time.

  python experiments/run.py --config=configs/qwen_math.py
  python experiments/run.py --config=configs/qwen_math.py:1.5b-math500-to_go

A variant is any of a size (`0.5b`, default; `1.5b`; `7b`), a data set
(`gsm8k`, default; `math500`; `dapo`) and a credit mode (`paper`, default;
`to_go`, this project's extension; `grpo`; `faithful`, the authors' formulas;
`length_penalty`, the control), joined by `-`. Model and data are fetched; where
there is no network, local folders take their place:

  --config.model.pretrained=FOLDER --config.data.source_dir=FOLDER

From the paper and its code: learning rate 1e-6, Adam (0.9, 0.99), clip norm 1,
8 samples a prompt at temperature 1, 96 completions a step (128 for 7b) of at
most 2,048 tokens, prompts of at most 512, clip 0.2 / 0.28, token mean, KL
weight 0.001, bfloat16, seed 42, the weights of information and exploration that
its authors list for each model and data set, the checkpoint with the best
pass@32 / length@32 of the five best. GSM8K has its own splits; of MATH-500 and
of the first 7,000 problems of DAPO-Math-17k 80 % train and 20 % test; 50
problems validate.

Other than there: probes are exact and end with the reasoning (docs/method.md);
the prompt opens the reasoning, so that completions begin within it; answers
are compared by meaning, not by spelling; prompts are in our own words; no
prompt loses its beginning (MATH-500 may have 1,024 tokens; of DAPO longer ones
are skipped and counted); validation problems never are test problems; problems
that DAPO says again count once. How many steps the authors train is not known
to us: here one pass over the train problems, four over those of MATH-500.

Hardware: the plan that is printed first has the memory of each device (also
with --dry_run). 12 prompts a step divide over 1, 2 or 4 devices; with 8 add
--config.mesh.tensor=2. `7b` shards its weights over all devices and expects 8
(of 80 GB). `0.5b` on one device wants 80 GB, 40 with
--config.loss.micro_batches=8, 24 with 24. On one H200 a step of 1,024 tokens a
completion took 8.3 s.

Verified so far: this file with a folder of Qwen2.5-0.5B's own configuration
and random weights takes two steps on GSM8K's text, on a CPU with two layers, on
a GPU with all of them (docs/first_hour.md has the commands), and with a smaller
model of the same family in tests/test_recipes.py. Not verified: anything with
published weights, on TPUs or several GPUs, or about what is learned.
"""

import ml_collections

from iapo_jax.config import presets


def get_config(variant: str | None = None) -> ml_collections.ConfigDict:
  """A variant of `math` of this family."""
  return presets.read("math")["get_config"](variant, family="qwen")
