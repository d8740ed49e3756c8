"""Runs whose numbers are not finite: skipped, counted, told, and kept."""

import math
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_trainer import lines_of, small

from iapo_jax.core.errors import ConfigError
from iapo_jax.core.types import Prompts
from iapo_jax.rl import finite, train_step
from iapo_jax.rl.own import Own
from iapo_jax.rl.warm_start import Demonstrations
from iapo_jax.run import (
  assembly,
  checkpoint,
  logs,
  replay,
  sources,
  trainer,
  workdir,
)

ONLY_STEPS = {
    "warm_start__num_steps": 0, "evaluation__every": 0,
    "loss__early_weight": 0.0, "model__d_model": 32, "model__mlp_dim": 64,
}  # fmt: skip


def poisoned(spoils):
  """Probes with NaN for batches that `spoils` says yes to."""

  def run_probes(params, rolled, grades, prompts, cfg, vocabulary):
    found = train_step.run_probes(
        params, rolled, grades, prompts, cfg, vocabulary
    )
    bad = jnp.where(spoils(prompts), jnp.nan, 0.0)
    return found.replace(entropy=found.entropy + bad)

  return run_probes


def is_odd(prompts):
  return jnp.sum(prompts.tokens) % 2 == 1


def params_of(folder, step):
  parts = assembly.assemble(workdir.load_config(folder))
  spec = assembly.reinforcement_stage(parts).spec
  where = checkpoint.stage_folder(folder, "rl")
  return jax.device_get(checkpoint.restore(where, step, spec)[0])


@pytest.mark.full
def test_a_bad_step_is_skipped_and_the_run_goes_on(tmp_path, capsys):
  """Of six batches about half are odd, whose probe statistics are NaN."""
  cfg = small(
      num_steps=6, checkpoint__every=1, checkpoint__keep_last=9, **ONLY_STEPS
  )
  trainer.train(cfg, tmp_path, own=Own(probing=poisoned(is_odd)))
  lines = logs.stage_metrics(tmp_path, "rl")
  skipped = [line["update/skipped"] for line in lines]
  assert len(skipped) == 6
  assert set(skipped) == {0, 1}
  told = logs.read(tmp_path, logs.WARNINGS)
  told = [x for x in told if "skipped" in x["warning"]]
  assert [x["step"] for x in told] == [
      line["step"] for line in lines if line["update/skipped"]
  ]
  assert "1 of 1 updates skipped; not finite: " in told[0]["warning"]
  assert "updates skipped; not" in capsys.readouterr().out
  for line in lines:
    assert bool(line["update/skipped"]) == bool(
        finite.offenders(line)
    )
    step = line["step"]
    before, after = params_of(tmp_path, step - 1), params_of(tmp_path, step)
    if line["update/skipped"]:
      # All but the count is what it was.
      chex.assert_trees_all_equal(before.replace(step=step), after)
    else:
      with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(before.params, after.params)
  # Nobody stopped it, so that nothing is kept for a replay.
  assert not replay.folder(tmp_path).exists()


@pytest.mark.full
def test_a_run_stops_after_so_many_and_again_when_it_goes_on(tmp_path):
  cfg = small(
      num_steps=9, checkpoint__every=1, optimizer__max_skipped=3, **ONLY_STEPS
  )
  always = Own(probing=poisoned(lambda _: True))
  for _ in range(2):
    with pytest.raises(FloatingPointError, match=r"rl step 3: \S+, .* finite"):
      trainer.train(cfg, tmp_path, own=always)
    assert sources.last(tmp_path).name == "rl/2"
    # What follows the last checkpoint is there once.
    steps = [line["step"] for line in logs.stage_metrics(tmp_path, "rl")]
    assert steps == [1, 2, 3]
  assert [x.name for x in replay.folder(tmp_path).iterdir()] == ["rl-3"]
  # The step alone, without the poison, is a good one.
  harmless = Own(probing=poisoned(lambda _: False))
  found = replay.again(replay.folder(tmp_path) / "rl-3", harmless)
  assert not finite.offenders(found.metrics)
  assert found.place is None
  assert math.isnan(found.before["probe/entropy"])
  # And it is that step: same prompts, same completions, same rewards.
  for name in ("reward/total", "length/completion", "policy/entropy"):
    assert found.metrics[name] == pytest.approx(found.before[name], rel=1e-5)


@pytest.fixture(scope="module")
def overflown(tmp_path_factory):
  """A learning rate of 1e30: finite weights whose logits are not."""
  folder = tmp_path_factory.mktemp("runs") / "overflown"
  cfg = small(
      warm_start__num_steps=12,
      warm_start__optimizer__learning_rate=1e30,
      num_steps=0,
  )
  with pytest.raises(FloatingPointError) as error:
    trainer.train(cfg, folder)
  return folder, str(error.value)


def test_why_a_run_stopped(overflown):
  folder, said = overflown
  found = re.match(r"warm_start step (\d+): ([\w/, ]+) not finite\. No", said)
  assert found
  assert "in 5 steps in a row (optimizer.max_skipped), so the run stops" in said
  assert (
      "lower learning rate or clip_norm, starting from the same weights"
  ) in said
  step = int(found[1])
  assert f"`iapo replay {folder}/replay/warm_start-{step}`. " in said
  lines = lines_of(folder)
  assert [x["update/skipped"] for x in lines[-5:]] == [1] * 5
  assert lines[-6]["update/skipped"] == 0


@pytest.mark.full
def test_a_replay_comes_to_the_same_and_finds_the_place(overflown):
  folder, said = overflown
  place = folder / "replay" / re.match(r"\S+ step \d+", said)[0].replace(
      " step ", "-"
  )
  found = replay.again(place)
  assert finite.offenders(found.metrics) == finite.offenders(found.before)
  for name, value in found.metrics.items():
    expected = found.before[name]
    assert value == pytest.approx(expected, rel=0, nan_ok=True)
  assert re.match(
      r"nan generated by primitive: \w+, in \w+, iapo_jax/\S+:\d+$",
      found.place,
  )


@pytest.mark.full
def test_a_users_parts_must_be_there_again(overflown, tmp_path):
  shutil.copytree(overflown[0], tmp_path / "run")
  (place,) = replay.folder(tmp_path / "run").iterdir()

  def mine(evidence):
    return evidence.information

  rule = "the step ran with own parts 'none', not with 'credit mine'"
  with pytest.raises(ConfigError, match=rule):
    replay.again(place, Own(credit=mine))
  (place / "own.json").write_text('{"own": "credit mine"}')
  rule = "the step ran with own parts 'credit mine', not with 'none'"
  with pytest.raises(ConfigError, match=rule):
    replay.again(place)
  found = replay.again(place, Own(credit=mine))
  assert finite.offenders(found.metrics) == finite.offenders(found.before)


def test_a_batch_of_an_older_version_gets_its_rows(overflown, tmp_path):
  """It has none; they are those of the same prompts."""
  (place,) = replay.folder(overflown[0]).iterdir()
  parts = assembly.assemble(workdir.load_config(overflown[0]))
  like = Demonstrations(Prompts(0, 0, 0, 0, 0), 0, 0)
  whole = replay._read_batch(place, like, parts)
  older = {
      f".{name}": array
      for name, array in vars(whole).items() if name != "prompts"
  } | {
      f".prompts.{name}": array
      for name, array in vars(whole.prompts).items() if name != "rows"
  }  # fmt: skip
  np.savez(tmp_path / "batch.npz", **older)
  again = replay._read_batch(tmp_path, like, parts)
  table = parts.task.tables["train"].prompts
  np.testing.assert_array_equal(
      table.tokens[again.prompts.rows], whole.prompts.tokens
  )
  np.testing.assert_array_equal(table.gold[again.prompts.rows], table.gold[
      whole.prompts.rows
  ])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda x: (x / "metrics.json").unlink(), "must be a step that a"),
        (lambda x: (x / "batch.npz").write_bytes(b"PK"), "batch.npz': is dama"),
        (lambda x: (x / "batch.npz").unlink(), "batch.npz': is damaged"),
        (lambda x: np.savez(x / "batch.npz", x=3), "batch.npz': is damaged"),
        (lambda x: (x.parent.parent / "config.json").unlink(), "holds no run"),
    ],
)
def test_what_cannot_be_replayed(overflown, tmp_path, harm, message):
  shutil.copytree(overflown[0], tmp_path / "run")
  (place,) = replay.folder(tmp_path / "run").iterdir()
  harm(place)
  with pytest.raises(ConfigError, match=re.escape(message)):
    replay.again(place)
