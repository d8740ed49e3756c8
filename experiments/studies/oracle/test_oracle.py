"""Small policies beside enumeration, and the committed results."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import continuations
import jax
import jax.numpy as jnp
import numpy as np
import numpy_decoder
import oracle
import oracle_demo as demo
import oracle_encoding
import oracle_measures as measures
import oracle_policies as policies

ROOT = pathlib.Path(__file__).parents[3]
ROWS = 3  # completions of each prompt


def config():
  cfg = policies.config_of(ROWS)
  model = dataclasses.replace(cfg.model, tie_embeddings=False)
  return dataclasses.replace(cfg, model=model)


# From a token (rows) to the next: what is not 0 keeps to the format.
CHAIN = np.array([
    [0.1, 0.1, 0.1, 0.3, 0, 0.4, 0],
    [0.1, 0.1, 0.1, 0.3, 0, 0.4, 0],
    [0.2, 0.2, 0.2, 0.4, 0, 0, 0],
    [0, 0, 0, 0, 1, 0, 0],
    [0.7, 0.3, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 1],
])  # fmt: skip


def markov(cfg, noise=0.0):
  """A decoder whose next token depends on the last one, and with noise on all.

  Embeddings are units, layers add `noise` times what random ones do, and the
  head reads log-probabilities.
  """
  params = policies.random_policy(0, cfg)
  size, width = cfg.model.vocab_size, cfg.model.d_model
  table = np.log(np.maximum(CHAIN, 1e-9)) / np.sqrt(width)
  layers = jax.tree_util.tree_map_with_path(
      lambda path, x: x * noise if str(path[-1].key)[0] in "od" else x,
      params["layers"],
  )
  return params | {
      "embedding": jnp.eye(size, width),
      "head": jnp.zeros((size, width)).at[:, :size].set(table.T),
      "layers": layers,
  }


def uncertain(params, cfg, text, asked, answer):
  """log π and H along an answer, by the decoder in NumPy, in float64."""
  logp = numpy_decoder.log_distributions(params, [*text, *asked, *answer], cfg)
  along = logp[-len(answer) - 1 : -1] if answer else logp[-1:]
  entropies = -np.sum(np.exp(along) * along, axis=-1)
  chosen = along[np.arange(len(answer)), answer] if answer else np.zeros(1)
  return -np.sum(chosen), np.sum(entropies) * bool(answer), entropies[0]


def test_the_second_decoder_is_a_decoder():
  cfg = config()
  params = jax.device_get(markov(cfg, noise=0.5))
  tokens = np.random.default_rng(0).integers(7, size=(2, 6))
  found = oracle_encoding.decoded(params, tokens, cfg.model)
  for row, text in zip(found, tokens, strict=True):
    expected = numpy_decoder.log_distributions(params, text, cfg.model)
    np.testing.assert_allclose(row, expected, atol=1e-10)


def test_probes_are_an_enumeration_of_answers():
  """Every estimator's D, from the pipeline and from the decoder in NumPy."""
  cfg = config()
  params = markov(cfg, noise=0.5)
  kind = policies.KINDS[1]
  prompts = policies.prompts_of(kind)
  found = jax.device_get(
      measures.run_pipeline(
          params, prompts, jax.random.key(7), cfg=cfg,
          vocabulary=policies.VOCABULARY, tags=policies.TAGS, answer_tokens=2,
      )
  )  # fmt: skip
  # An answer of two tokens is among them, and reasonings of any length.
  assert found["answer_lengths"].max() == 2
  assert len(set(found["reasoning"].tolist())) > 1
  asked = policies.VOCABULARY.elicitation
  shallow = params | {
      "layers": jax.tree.map(lambda x: x[:1], params["layers"])
  }
  one = dataclasses.replace(cfg.model, num_layers=1)
  for row, length in enumerate(found["reasoning"]):
    prompt = np.asarray(prompts.tokens[row // ROWS]).tolist()
    gold = np.asarray(prompts.gold[row // ROWS]).tolist()
    own = found["answers"][row, : found["answer_lengths"][row]].tolist()
    words = found["tokens"][row].tolist()
    u = {name: [] for name in measures.ESTIMATORS}
    for i in range(length + 1):
      text = [*prompt, *words[:i]]
      surprise, _, first = uncertain(params, cfg.model, text, asked, gold)
      u["gold"].append(surprise)
      u["entropy"].append(first)
      surprise, along, _ = uncertain(params, cfg.model, text, asked, own)
      u["own"].append(surprise)
      u["answer_entropy"].append(along)
      u["one layer"].append(uncertain(shallow, one, text, asked, gold)[2])
    at = {
        "stride 2": {*range(0, length, 2), length},
        "sentences": {0, length, *(
            i for i in range(1, length) if words[i - 1] == policies.STOP
        )},
    }  # fmt: skip
    for name, marks in at.items():
      marks = sorted(marks)
      u[name] = np.interp(
          range(length + 1), marks, [u["entropy"][i] for i in marks]
      )
    for name, values in u.items():
      np.testing.assert_allclose(
          found["information"][name][row, :length], -np.diff(values), atol=1e-5
      )
      np.testing.assert_array_equal(
          found["information"][name][row, length:], 0
      )


def test_a_consistent_decoder_has_no_gap():
  """What it answers does not depend on when it is asked."""
  cfg = config()
  params = markov(cfg)
  ends = measures.ends_of(policies.KINDS[0], 5)
  truth = measures.truth_of(params, np.array([0]), ends, cfg.model)
  # Nothing, and a token of reasoning; an answer takes four more.
  texts = [(), (1,)]
  visited = measures.Visited(
      texts, at=None, passed=None,
      true=np.stack([truth.answers[0][0], truth.answers[1][1]]),
  )  # fmt: skip
  whole = oracle_encoding.elicited_of(
      params, [(0, *text) for text in texts], policies.VOCABULARY.elicitation,
      1, cfg.model,
  )  # fmt: skip
  np.testing.assert_allclose(np.exp(whole.first[:, :2]), [[0.7, 0.3]] * 2,
                             rtol=1e-5)  # fmt: skip
  gap = measures.gaps(visited, whole, whole, ends)
  for name in ("kl_first", "kl_whole", "entropy_first", "entropy_whole"):
    np.testing.assert_allclose(gap[name], 0, atol=1e-5)
  # It may fail to answer in time: there the rest of the truth is.
  assert (gap["no_answer"] > 0.1).all()


def test_counts_are_of_the_final_answers():
  """Continuations of the sampler, within four deviations of enumeration."""
  cfg = config()
  cfg = dataclasses.replace(
      cfg, rollout=dataclasses.replace(cfg.rollout, max_tokens=5)
  )
  params = markov(cfg, noise=1.0)
  kind, count = policies.KINDS[0], 1024
  prompts = jax.device_get(policies.prompts_of(kind))
  subject = demo.Subject(
      cfg, params, prompts, policies.VOCABULARY, policies.TAGS
  )
  tokens = np.array([[0, policies.STOP, 0, 0, 0]] * 2, np.int32)
  cuts = np.array([0, 1])
  counts = demo.answer_counts(
      subject, prompts, tokens, cuts, jax.random.key(0), count
  )
  np.testing.assert_array_equal(np.sum(counts, axis=1), count)
  ends = measures.ends_of(kind, 5)
  numbers = continuations.text_numbers(tokens, cfg.model.vocab_size)
  for row, cut in enumerate(cuts):
    truth = measures.truth_of(params, prompts.tokens[row], ends, cfg.model)
    true = truth.answers[cut][numbers[row, cut]]
    for answer, p in zip(ends.answers, true, strict=True):
      hits = counts[row, answer[0] + 1 if answer else 0]
      assert abs(hits - count * p) <= 4 * np.sqrt(count * p * (1 - p)) + 1e-6


def test_demonstrations_vote():
  kind = policies.KINDS[1]
  shown = policies.demonstrations(
      kind, np.random.default_rng(0), 200, early_share=0.5,
      early_full_share=0.0,
  )  # fmt: skip
  cuts = np.argmax(shown.completion == policies.THINK_CLOSE, axis=1)
  whole = cuts == kind.reasoning
  assert 60 < whole.sum() < 140
  np.testing.assert_array_equal(
      shown.learned.sum(1), np.where(whole, policies.LONGEST, 2)
  )
  for words in shown.completion[whole]:
    votes = (words[:2] == 1).sum() - (words[:2] == 0).sum()
    assert votes == 0 or words[4] == (votes > 0)
    assert words[5] == (policies.STOP in words[:2])


def test_evidence_holds_what_the_page_says():
  """The must-show, and every table of the page, from the committed file."""
  found = json.loads((ROOT / "docs/evidence/oracle.json").read_text())
  for record in found["policies"]:
    assert record["largest_difference"] <= 1e-5
    assert record["largest_logprob_difference"] <= 1e-5
  page = (ROOT / "docs/evidence/oracle.md").read_text()
  for kind in policies.KINDS:
    for what in ("bias", "correlation"):
      assert oracle.table(found, kind.name, what) in page
    assert oracle.gap_table(found, kind.name) in page
  assert oracle.demo_table(found) in page
  assert oracle.demo_gap_table(found) in page


def test_a_small_study_is_no_evidence():
  done = subprocess.run(
      [sys.executable, "experiments/studies/oracle/oracle.py", "--small"],
      cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert "--small: needs --output, so that docs/evidence is kept" in done.stderr
