"""Formats of models that think in runs: plan, grades, R, probes, two steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import templates
import texts
import tiny

from iapo_jax.config import parsing
from iapo_jax.core import sharding
from iapo_jax.core.types import Rollout
from iapo_jax.hf import tokenizer
from iapo_jax.models import head
from iapo_jax.rl import credit, policy, train_step
from iapo_jax.run import assembly, logs

CASES = {
    "hybrid": ("thinker", {}),
    "opened": ("thinker", {}),
    "same_line": ("thinker", {}),
    "switched": ("thinker", {}),
    "closed": ("boxed", {}),
    "plain": ("boxed", {}),
    "written": ("thinker", {"format.opened_by": "model"}),
}
ENDS = {
    "hybrid": "[assistant]<think>\\n'; the prompt opens the thinking",
    "opened": "[assistant]<think>\\n'; the prompt opens the thinking",
    "same_line": "[assistant]<think>'; the prompt opens the thinking",
    "switched": "[assistant]<think>\\n'; the prompt opens the thinking",
    "closed": "<think>\\n\\n</think>\\n\\n'; the model does not think",
    "plain": "[assistant]'; the model does not think",
    "written": "[assistant]'; the model opens the thinking",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """GSM8K's form, and a tokenizer with each template."""
  found = tmp_path_factory.mktemp("thinkers")
  texts.write_gsm8k(found)
  tok = tokenizer.load(texts.write_tokenizer(found / "tokenizer"))
  for name in CASES:
    tok.chat_template = templates.ALL[
        "hybrid" if name == "written" else name
    ]
    tok.save_pretrained(found / name)
  return found


def settings(place, name):
  preset, more = CASES[name]
  return {
      "format.preset": preset,
      "data.task": "gsm8k",
      "data.source_dir": str(place),
      "data.prepared_dir": str(place / "prepared"),
      "data.tokenizer": str(place / name),
      "data.validation_problems": 4,
      "data.max_prompt_tokens": 200,
      "data.max_gold_tokens": 6,
      "reward.grader": "host",
      "rollout.max_tokens": 48,
      "prompts_per_step": 2,
      "group_size": 4,
      "probe.stride": 4,
      "num_steps": 2,
      "warm_start.num_steps": 0,
      "evaluation.problems": 4,
      "evaluation.batch_size": 8,
      "model.d_model": 32,
      "model.mlp_dim": 64,
      **more,
  }


@pytest.mark.parametrize("name", CASES)
def test_the_plan_of_every_template(place, tmp_path, name):
  done = runs.command(
      "train", "--config=arithmetic:to_go", "--dry_run",
      f"--workdir={tmp_path / 'run'}",
      *(f"--config.{k}={v}" for k, v in settings(place, name).items()),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  out = done.stdout
  assert f"{ENDS[name]}\n" in out
  asked = "\\n\\n**Final Answer**\\n\\\\boxed{'"
  if CASES[name][0] == "thinker":
    asked = "\\n</think>" + asked
  assert f"asks       '{asked}, tokens " in out
  assert "ends       2 '<|im_end|>'" in out


def planted(form, gold):
  """Right, wrong, cut and malformed: each a reasoning and what follows."""
  before = form.before_reasoning
  wrong = "1" if gold != "1" else "2"
  after = f"{form.closer}\n\nSo it is " if form.thinks else ""
  return [
      (f"{before}Each box has nails.\n", f"{after}\\boxed{{{gold}}}.", True),
      (f"{before}Each has 3.\n", f"{after}\\boxed{{{wrong}}}.", True),
      (f"{before}Each box", "", False),
      # Right after two guesses: R ends before the last box without thinking.
      (f"{before}So ", f"{after}\\boxed{{3}} or \\boxed{{{gold}}}", True)
      if form.thinks
      else ("So \\boxed{3} or ", f"\\boxed{{{gold}}}", True),
  ]


@pytest.mark.parametrize("name", ["hybrid", "closed", "written"])
def test_planted_completions_are_graded_and_probed(place, name):
  """Rewards with spread, R exact, and probes where the reasoning ends."""
  config = parsing.default()
  config.update_from_flattened_dict(settings(place, name))
  parts = assembly.assemble(parsing.parse(config), jax.local_devices()[:1])
  cfg, tok = parts.cfg, parts.task.tokenizer
  table = parts.task.tables["train"]
  prompts = jax.tree.map(lambda x: x[:2], table.prompts)
  rows = [
      x
      for problem in parts.task.problems["train"][:2]
      for x in planted(cfg.format, problem.answer)
  ]
  tokens = np.full((8, 48), parts.task.vocabulary.pad_id, np.int32)
  lengths, expected = np.zeros(8, np.int32), np.zeros(8, np.int32)
  ended = np.array([x[2] for x in rows])
  for i, (reasoning, rest, ends) in enumerate(rows):
    encoded = tokenizer.encoding(tok, reasoning + rest)
    ids = [*encoded.ids, *[parts.task.vocabulary.eos_ids[0]] * ends]
    lengths[i], tokens[i, : len(ids)] = len(ids), ids
    expected[i] = sum(end <= len(reasoning) for _, end in encoded.offsets)
  samples, metrics, probe, params = _step(
      parts, prompts, tokens, lengths, ended
  )
  np.testing.assert_array_equal(samples.reasoning_lengths, expected)
  right = [True, False, False, True] * 2
  formed = [True, True, False, False] * 2
  np.testing.assert_array_equal(samples.correct, right)
  np.testing.assert_array_equal(samples.well_formed, formed)
  # Right 1, wrong -1; well formed 0.5, else -0.5.
  np.testing.assert_allclose(samples.rewards, [1.5, -0.5, -1.5, 0.5] * 2)
  assert metrics["reward/zero_spread_groups"] == 0
  assert np.all(samples.group_advantages[[0, 4]] > 0.5)
  # The probe at i sees the prompt, i tokens and the elicitation.
  asked = list(parts.task.vocabulary.elicitation)
  for row in (0, 5, 7):
    q, last = row // 4, int(expected[row])
    start = prompts.tokens[q, : prompts.lengths[q]].tolist()
    for i in sorted({0, min(4, last), last}):
      seen = jnp.asarray([[*start, *tokens[row, :i].tolist(), *asked]])
      hidden = tiny.full_forward(params, seen, cfg.model)
      scores = head.logits(params, hidden[:, -1], cfg=cfg.model)
      logprobs = jax.nn.log_softmax(scores[0])
      entropy = -jnp.sum(jnp.exp(logprobs) * logprobs)
      np.testing.assert_allclose(
          probe.entropy[row, i], entropy, rtol=1e-5, atol=1e-5
      )
      target = prompts.gold[q, 0]
      np.testing.assert_allclose(
          probe.logprob[row, i], logprobs[target], rtol=1e-5, atol=1e-5
      )


def _step(parts, prompts, tokens, lengths, ended):
  """Grades, probes and credits planted completions in one program."""
  cfg, mesh = parts.cfg, parts.mesh
  stage = assembly.reinforcement_stage(parts)
  state = assembly.create_state(parts, stage)

  @jax.jit
  def run(params, weights, prompts, tokens, lengths, ended):
    with sharding.scope(mesh):
      _, context = policy.replay(
          params, prompts, tokens, cfg=cfg.model, group_size=cfg.group_size
      )
      zeros = jnp.zeros(tokens.shape)
      rolled = Rollout(tokens, lengths, ended, zeros, zeros, context)
      grades = parts.grader(rolled, prompts)
      probe = train_step.run_probes(
          params, rolled, grades, prompts, cfg, parts.task.vocabulary
      )
      credited, metrics = credit.assign(
          rolled, grades, probe, weights, jax.random.key(0), cfg
      )
      return train_step.record(rolled, grades, credited), metrics, probe

  # Sharper than at the start, so that entropies differ.
  params = jax.tree.map(lambda x: 1.5 * x, state.params)
  placed = jax.tree.map(jnp.asarray, prompts)
  found = run(params, state.weights, placed, tokens, lengths, ended)
  return *jax.device_get(found), params


@pytest.mark.full
def test_two_steps_and_the_records(place, tmp_path):
  """A run of a model that thinks, from the plan to the last completion."""
  run = tmp_path / "run"
  done = runs.command(
      "train", "--config=arithmetic:to_go", f"--workdir={run}",
      *(f"--config.{k}={v}" for k, v in settings(place, "opened").items()),
      "--config.log.samples_every=1", "--config.evaluation.every=2",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert ENDS["opened"] in done.stdout
  lines = logs.stage_metrics(run, "rl")
  assert [line["step"] for line in lines] == [1, 2]
  record = logs.read(run, logs.SAMPLES)[0]
  assert record["prompt"].endswith("within \\boxed{}.<eos>[assistant]<think>\n")
  saved = json.loads((run / "config.json").read_text())
  assert saved["format.preset"] == "thinker"
  assert saved["format.answer_open"] == "\\boxed{"
