"""The recipe of CONTRIBUTING.md for a credit mode, followed to the letter."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import runs

ROOT = pathlib.Path(__file__).parent.parent

# Two completions of one prompt, of 3 and 2 tokens: a right one that reasons for
# all of its tokens, and a wrong one that reasons for one. Both are well formed.
PROGRAM = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from iapo_jax.cli import configuration
from iapo_jax.core.types import AnswerStatistics, Grades, Rollout
from iapo_jax.rl import credit, state

cfg, _ = configuration.load(sys.argv[1], [])
cfg = dataclasses.replace(cfg, group_size=2)
uncertain = jnp.array([[2.0, 1.5, 1.75, 0.25], [1.0, 0.5, 0.5, 0.5]])
zeros, two = jnp.zeros((2, 3)), jnp.array([3, 2])
rolled = Rollout(
    tokens=jnp.zeros((2, 3), jnp.int32), lengths=two, ended=two > 0,
    logprobs=zeros, entropies=zeros, context=(),
)
grades = Grades(
    correct=jnp.array([True, False]), well_formed=two > 0,
    reasoning_lengths=jnp.array([3, 1]), timed_out=two < 0,
)
probe = AnswerStatistics(
    logprob=-uncertain, entropy=uncertain, hit=uncertain < 0, answer=None,
    spent=two,
)
credited, _ = jax.jit(lambda *arrays: credit.assign(*arrays, cfg))(
    rolled, grades, probe, state.credit_weights(cfg.credit), jax.random.key(0)
)
print(json.dumps([cfg.credit.mode, credited.advantages.tolist()]))
"""


def recipe():
  """The code blocks of the section."""
  text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
  text = text.partition("## A new credit mode\n")[2].partition("\n## ")[0]
  blocks = re.findall(r"^    .*\n(?:(?:    .*)?\n)*", text, re.MULTILINE)
  unindented = [re.sub(r"^    ", "", x, flags=re.MULTILINE) for x in blocks]
  return [x.rstrip("\n") + "\n" for x in unindented]


def test_a_credit_mode_by_the_recipe(tmp_path):
  function, entry, command = recipe()
  for folder in ("iapo_jax", "configs"):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  credits = tmp_path / "iapo_jax/rl/credits.py"
  credits.write_text(f"{credits.read_text()}\n\n{function}")
  entries = tmp_path / "iapo_jax/config/credits.py"
  before = entries.read_text()
  assert before.endswith("    ),\n}\n")
  entries.write_text(f"{before[:-2]}{entry}}}\n")

  (config,) = re.fullmatch(r"iapo train --config=(\S+)\n", command).groups()
  done = subprocess.run(
      [sys.executable, "-c", PROGRAM, config],
      cwd=tmp_path,
      env=runs.environment() | {"PYTHONPATH": str(tmp_path)},
      capture_output=True,
      text=True,
      timeout=300,
  )
  assert done.returncode == 0, done.stderr
  mode, got = json.loads(done.stdout)
  assert function.startswith(f"def {mode}(")
  # Rewards 1.5 and -0.5: deviations of 1, std sqrt(2). D is 0.5, -0.25, 1.5 for
  # the right one; what the wrong one gains counts for nothing.
  a = 1 / (2**0.5 + 1e-4)
  np.testing.assert_allclose(got, [[a + 0.5, a, a + 1.5], [-a, -a, 0]], 1e-6)
