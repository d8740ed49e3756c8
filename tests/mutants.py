"""Puts one-line faults into a copy, one at a time; do the fast tests see them?

  python tests/mutants.py
  python tests/mutants.py --only=to_go,clip

For each fault it runs the tests near it that `make test` runs, and prints a
table. A fault is caught where a test fails. The same tests must pass without
any fault; that is checked first. Exit status 1 if a fault is missed.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Fault(NamedTuple):
  """A fault: in `path`, `before` (which occurs once) becomes `after`.

  `tests` are the arguments of pytest: the tests near it.
  """

  name: str
  path: str
  before: str
  after: str
  tests: str


FAULTS = (
    Fault(
        "format: a box inside the thinking counts",
        "iapo_jax/rewards/text.py",
        "begin = 0 if closed < 0 else closed + len(form.closer)",
        "begin = 0",
        "tests/test_transcripts.py",
    ),
    Fault(
        "format: a second thinking counts as the answer",
        "iapo_jax/rewards/text.py",
        "return begin, len(text) if reopened < 0 else reopened",
        "return begin, len(text)",
        "tests/test_transcripts.py",
    ),
    Fault(
        "format: two boxes are well formed",
        "iapo_jax/rewards/text.py",
        "return len(found) == 1 and bool(",
        "return len(found) >= 1 and bool(",
        "tests/test_transcripts.py",
    ),
    Fault(
        "prompt: the thinking is opened twice",
        "iapo_jax/data/prompts.py",
        'form.opened_by != "prompt" or prompt.rstrip().endswith(form.opener)',
        'form.opened_by != "prompt"',
        "tests/test_fitting.py",
    ),
    Fault(
        "template: a closed thinking passes",
        "iapo_jax/data/fitting.py",
        'if form.thinks and ending == "closed":',
        'if form.thinks and ending == "never":',
        "tests/test_fitting.py",
    ),
    Fault(
        "to_go: the sign of the price",
        "iapo_jax/rl/advantages.py",
        "jnp.where(reasoning_mask, mi, 0.0) - jnp.where(priced, cost, 0.0)",
        "jnp.where(reasoning_mask, mi, 0.0) + jnp.where(priced, cost, 0.0)",
        "tests/test_advantages.py",
    ),
    Fault(
        "to_go: wrong completions are credited, too",
        "iapo_jax/rl/advantages.py",
        "gate = (reasoning_mask | priced) & credited[:, None]",
        "gate = reasoning_mask | priced",
        "tests/test_advantages.py",
    ),
    Fault(
        "price: the EOS belongs to the answer",
        "iapo_jax/rl/credit.py",
        "before_end = slots < (rolled.lengths - rolled.ended)[:, None]",
        "before_end = slots < rolled.lengths[:, None]",
        "tests/test_price.py",
    ),
    Fault(
        "selection: cut completions learn, too",
        "iapo_jax/rl/credit.py",
        "learned &= rolled.ended[:, None]",
        "learned &= rolled.mask",
        "tests/test_price.py",
    ),
    Fault(
        "information: the mask of the reasoning is dropped",
        "iapo_jax/rl/mi.py",
        "jax.lax.stop_gradient(jnp.where(reasoning_mask, information, 0.0))",
        "jax.lax.stop_gradient(information)",
        "tests/test_mi.py",
    ),
    Fault(
        "probes: every position but the last of a stride",
        "iapo_jax/rl/probes.py",
        "(jnp.arange(slots) % stride == 0)[None]",
        "(jnp.arange(slots) % stride == stride - 1)[None]",
        "tests/test_probes.py",
    ),
    Fault(
        "group advantages: the mean of the whole batch",
        "iapo_jax/rl/advantages.py",
        "centred = grouped - masked.mean(grouped, there)[:, None]",
        "centred = grouped - jnp.mean(grouped)",
        "tests/test_advantages.py",
    ),
    Fault(
        "loss: clip bounds swapped",
        "iapo_jax/rl/losses.py",
        "jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)",
        "jnp.clip(ratio, 1.0 - clip_high, 1.0 + clip_low)",
        "tests/test_losses.py",
    ),
    Fault(
        "loss: the larger of the two surrogates",
        "iapo_jax/rl/losses.py",
        "return -jnp.minimum(ratio * advantages, clipped * advantages)",
        "return -jnp.maximum(ratio * advantages, clipped * advantages)",
        "tests/test_losses.py",
    ),
    Fault(
        "loss: the KL penalty in the other direction",
        "iapo_jax/rl/losses.py",
        "delta = jax.lax.stop_gradient(reference_logprobs) - logprobs",
        "delta = logprobs - jax.lax.stop_gradient(reference_logprobs)",
        "tests/test_losses.py",
    ),
    Fault(
        "rollout: the same key at every token",
        "iapo_jax/rl/rollout.py",
        "keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, index)",
        "keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, 0)",
        "tests/test_rollout.py",
    ),
    Fault(
        "train step: the same key in every step",
        "iapo_jax/rl/train_step.py",
        "key = jax.random.fold_in(key, state.step)",
        "key = jax.random.fold_in(key, 0)",
        "tests/test_train_step.py",
    ),
    Fault(
        "selection: the longest members learn",
        "iapo_jax/rl/selection.py",
        "return (rank < keep).reshape(-1)",
        "return (rank >= group_size - keep).reshape(-1)",
        "tests/test_baselines.py",
    ),
    Fault(
        "credit: the exploration term rewards uncertainty",
        "iapo_jax/rl/advantages.py",
        "- jnp.sign(rewards)[:, None] * explore_weight * exploration",
        "+ jnp.sign(rewards)[:, None] * explore_weight * exploration",
        "tests/test_advantages.py",
    ),
    Fault(
        "masked mean: padding counts",
        "iapo_jax/core/masked.py",
        "total = jnp.sum(jnp.where(mask, x, 0.0), axis)",
        "total = jnp.sum(x, axis)",
        "tests/test_masked.py",
    ),
    Fault(
        "finite: an update that is not finite is made",
        "iapo_jax/rl/finite.py",
        "sound = everywhere((norm, metrics))",
        "sound = jnp.bool_(True)",
        "tests/test_finite.py",
    ),
    Fault(
        "checkpoint: not sealed",
        "iapo_jax/run/checkpoint.py",
        "  files.write_json(path / _CHECKSUMS, _checksums(path))\n",
        "  _checksums(path)\n",
        "tests/test_checkpoint.py",
    ),
    Fault(
        "configuration: a rule between fields is not checked",
        "iapo_jax/config/rules.py",
        "  _check_selection(c)\n",
        "",
        "tests/test_config.py",
    ),
    Fault(
        "configuration: the rules of fields are not checked",
        "iapo_jax/config/rules.py",
        "  fields.check(c)\n",
        "",
        "tests/test_config.py",
    ),
    Fault(
        "evaluation: pass@k off by one",
        "iapo_jax/run/evaluation.py",
        "failing[n - np.sum(correct, axis=1)]",
        "failing[n - 1 - np.sum(correct, axis=1)]",
        "tests/test_evaluation.py",
    ),
    Fault(
        "attention: a token sees the next one",
        "iapo_jax/models/transformer.py",
        "causal = jnp.tri(tokens.shape[1], dtype=bool)[None]",
        "causal = jnp.tri(tokens.shape[1], k=1, dtype=bool)[None]",
        "tests/test_transformer.py",
    ),
    Fault(
        "reward: the format part is left out",
        "iapo_jax/rewards/reward.py",
        "malformed + formed * (well_formed - malformed)",
        "malformed + 0 * formed * (well_formed - malformed)",
        "tests/test_rewards.py",
    ),
    Fault(
        "grading: any answer with the gold one in it is right",
        "iapo_jax/rewards/settling.py",
        "if squeezed(mine) == squeezed(theirs):",
        "if squeezed(theirs) in squeezed(mine):",
        "tests/test_grading.py tests/test_rewards.py",
    ),
    Fault(
        "grading: numbers of unlike units may change places",
        "iapo_jax/rewards/equivalence.py",
        "are_told_apart = len({x.label for x in golds}) > 1",
        "are_told_apart = False",
        "tests/test_grading_kinds.py",
    ),
    Fault(
        "grading: numbers are compared to twenty digits",
        "iapo_jax/rewards/formulas.py",
        "error = sympy.Float(10) ** (_SPARE_DIGITS - digits)",
        "error = sympy.Float(10) ** -20",
        "tests/test_grading_kinds.py",
    ),
    Fault(
        "log: a resumed run keeps the lines after its checkpoint",
        "iapo_jax/run/logs.py",
        "    os.truncate(path, size)\n",
        "    pass\n",
        "tests/test_logs.py",
    ),
    Fault(
        "data: a split shares problems with another",
        "iapo_jax/data/splits.py",
        "[row for i, row in enumerate(rows) if i not in drawn]",
        "list(rows)",
        "tests/test_data.py tests/test_text_tasks.py tests/test_published.py",
    ),
    Fault(
        "loading: axes of the layers' tensors are swapped",
        "iapo_jax/hf/names.py",
        'Part(("layers", *path.split("/")), theirs, ours)',
        'Part(("layers", *path.split("/")), ours, theirs)',
        "tests/test_hf.py",
    ),
)


def copy_of_the_tree(folder: pathlib.Path) -> None:
  """Every file that git knows of, as it is in the working tree."""
  listed = subprocess.run(
      ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
  ).stdout.decode()
  for name in filter(None, listed.split("\0")):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)


def run(folder: pathlib.Path, tests: str) -> int:
  """pytest's status for the fast ones of some tests."""
  command = [
      sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
      "-m", "not full", *tests.split(),
  ]  # fmt: skip
  environment = os.environ | {"PYTHONPATH": str(folder)}
  done = subprocess.run(
      command, cwd=folder, env=environment, capture_output=True, text=True
  )
  if done.returncode not in (0, 1):
    print(done.stdout[-3000:], done.stderr[-3000:])
  return done.returncode


def is_caught(folder: pathlib.Path, fault: Fault) -> bool:
  """Whether a test fails with the fault."""
  path = folder / fault.path
  source = path.read_text(encoding="utf-8")
  count = source.count(fault.before)
  if count != 1:
    raise SystemExit(f"{fault.name}: {fault.path} has it {count} times")
  path.write_text(source.replace(fault.before, fault.after), encoding="utf-8")
  try:
    status = run(folder, fault.tests)
  finally:
    path.write_text(source, encoding="utf-8")
  if status not in (0, 1):
    raise SystemExit(f"{fault.name}: pytest ended with status {status}")
  return status == 1


def main() -> None:
  """Runs the faults, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--only", default="", help="parts of names, by commas")
  words = [x for x in parser.parse_args().only.split(",") if x]
  chosen = [
      fault
      for fault in FAULTS
      if not words or any(word in fault.name for word in words)
  ]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy_of_the_tree(folder)
    near = sorted({x for fault in chosen for x in fault.tests.split()})
    if run(folder, " ".join(near)):
      raise SystemExit("the tests fail without any fault")
    caught = 0
    print("| fault | file | caught | s |\n|---|---|---|---|", flush=True)
    for fault in chosen:
      start = time.perf_counter()
      found = is_caught(folder, fault)
      caught += found
      seconds = time.perf_counter() - start
      print(
          f"| {fault.name} | `{fault.path}` | {'yes' if found else 'NO'} |"
          f" {seconds:.0f} |",
          flush=True,
      )
  print(f"\n{caught} of {len(chosen)} caught")
  sys.exit(caught < len(chosen))


if __name__ == "__main__":
  main()
