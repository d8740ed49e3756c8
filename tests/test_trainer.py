import gc
import json
import os
import pathlib
import re
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
from runs import read_wandb, unfinished_copy

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError
from iapo_jax.core.interrupts import Interrupted
from iapo_jax.rl.warm_start import Demonstrations
from iapo_jax.run import assembly, loop, memory, sources, trainer, workdir
from iapo_jax.run.checkpoint import Checkpoints


def small(**overrides):
  config = config_lib.default()
  config.num_steps = 2
  config.group_size = 4
  config.rollout.max_tokens = 60
  config.warm_start.update({"num_steps": 12, "batch_size": 16})
  config.warm_start.optimizer.learning_rate = 1e-2
  config.evaluation.update({"every": 1, "problems": 16, "batch_size": 16})
  # With levels, slips and early answers: a run reports all that one can.
  config.loss.early_weight = 0.1
  config.data.arithmetic.update({
      "operands": 3,
      "min_operands": 2,
      "slip_rate": 0.3,
      "check_rate": 0.5,
      "slip_check_rate": 0.5,
      "train_problems": 64,
      "validation_problems": 16,
      "test_problems": 40,
  })
  for name, value in overrides.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  return config_lib.parse(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run: warm start, then two RL steps with host grading."""
  workdir = tmp_path_factory.mktemp("runs") / "first"
  cfg = small(reward__grader="host", log__wandb="offline")
  trainer.train(cfg, workdir)
  return workdir


def lines_of(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_every_step_is_logged(finished):
  lines = lines_of(finished)
  steps = [(line["stage"], line["step"]) for line in lines]
  assert steps == [
      *(("warm_start", i) for i in range(1, 13)),
      ("validation", 0), ("rl", 1), ("validation", 1), ("rl", 2),
      ("validation", 2),
  ]  # fmt: skip
  learned = [line["sft/nll"] for line in lines[:12]]
  assert learned[-1] < learned[0] - 0.5
  for line in lines:
    assert all(np.isfinite(v) for k, v in line.items() if k != "stage")
  rl = [line for line in lines if line["stage"] == "rl"]
  assert {"probe/calibration_gap", "time/tokens_per_second"} <= set(rl[0])


def test_weights_and_biases_has_what_the_lines_have(finished):
  written = lines_of(finished)
  lines, run = read_wandb(finished, len(written))
  expected = [
      {f"{x['stage']}/{k}": v for k, v in x.items() if k != "stage"}
      for x in written
  ]
  ours = [
      {k: v for k, v in x.items() if not k.startswith("_")} for x in lines
  ]
  assert ours == expected
  assert (run.project, run.display_name) == ("iapo_jax", "first")


def test_every_metric_is_documented(finished):
  """The names a run writes are those in docs/metrics.md, and no others."""
  path = pathlib.Path(__file__).parent.parent / "docs" / "metrics.md"
  text = path.read_text(encoding="utf-8")
  documented = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
  written = {name for line in lines_of(finished) for name in line}
  written |= set(json.loads((finished / "summary.json").read_text()))
  general = {re.sub(r"@\d+$", "@K", name) for name in written}
  general = {re.sub(r"level_\d+$", "level_N", name) for name in general}
  # Of evaluate, of 80/20 splits, of lenient formats, of own rewards.
  elsewhere = {
      "seconds_per_completion", "note", "reward/guessed", "guessed_rate",
      "reward/NAME",
  }  # fmt: skip
  assert general - {"stage", "step"} == documented - elsewhere


def test_levels_and_checks_are_reported(finished):
  summary = json.loads((finished / "summary.json").read_text())
  assert [summary[f"problems/level_{i}"] for i in (2, 3)] == [20, 20]
  # Levels of one size: the mean over all is the mean of their means.
  for whole, part in (("accuracy", "accuracy"), ("mean_tokens", "tokens")):
    levels = [summary[f"{part}/level_{i}"] for i in (2, 3)]
    assert np.mean(levels) == pytest.approx(summary[whole])
  for name in ("check_after_slip", "check_after_none"):
    assert 0 <= summary[name] <= 1
  for line in lines_of(finished):
    assert ("problems/level_3" in line) == (line["stage"] == "validation")


def test_a_run_leaves_what_it_promises(finished):
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["problems"] == 40
  rate = summary["accuracy"]
  expected = np.sqrt(rate * (1 - rate) / 40)
  assert summary["accuracy_se"] == pytest.approx(expected)
  config = json.loads((finished / "config.json").read_text())
  assert config["model.vocab_size"] == 37  # the tokenizer's, filled in
  assert (finished / "tokenizer" / "tokenizer.json").exists()


def test_a_finished_run_is_left_alone(finished, capsys):
  before = (finished / "metrics.jsonl").read_bytes()
  trainer.train(small(reward__grader="host"), finished)
  assert "finished: nothing to do" in capsys.readouterr().out
  assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_run_of_a_version_with_fewer_fields(finished, tmp_path, capsys):
  """Those that are new had their defaults."""
  old = tmp_path / "old"
  shutil.copytree(finished, old)
  fields = json.loads((old / "config.json").read_text())
  del fields["optimizer.max_skipped"], fields["loss.early_weight"]
  (old / "config.json").write_text(json.dumps(fields))
  cfg = small(reward__grader="host")
  with pytest.raises(ConfigError, match=r"early_weight = 0.1: .* with 0.0"):
    trainer.train(cfg, old)
  fields["loss.early_weight"] = 0.1
  (old / "config.json").write_text(json.dumps(fields))
  trainer.train(cfg, old)
  assert "finished: nothing to do" in capsys.readouterr().out


def test_a_workdir_with_another_config_is_refused(finished):
  with pytest.raises(ConfigError) as error:
    trainer.train(small(reward__grader="host", seed=3), finished)
  assert str(error.value) == (
      f"config.seed = 3: workdir {str(finished)!r} holds a run with 0; use"
      " another --workdir"
  )


@pytest.mark.mesh
def test_another_run_starts_from_the_policy(finished, tmp_path):
  """The checkpoint restores bit by bit onto another mesh."""
  cfg = small(
      init_from=str(finished),
      mesh__data=2,
      mesh__fsdp=4,
      warm_start__num_steps=0,
      num_steps=0,
  )
  ours = sources.load(assembly.assemble(cfg), sources.last(finished))
  theirs = sources.load(assembly.assemble(small()), sources.last(finished))
  chex.assert_trees_all_equal(*jax.device_get((ours, theirs)))
  kernel = ours["layers"]["mlp"]["up_kernel"]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 256)
  # Not the weights a fresh start would give.
  trainer.train(cfg, tmp_path / "second")
  summary = json.loads((tmp_path / "second" / "summary.json").read_text())
  first = json.loads((finished / "summary.json").read_text())
  assert summary["mean_tokens"] == pytest.approx(first["mean_tokens"])


def test_weights_start_a_run_of_another_compute_dtype(finished):
  """They are fp32 in either."""
  cfg = small(init_from=str(finished), model__dtype="bfloat16")
  ours = sources.load(assembly.assemble(cfg), sources.last(finished))
  theirs = sources.load(assembly.assemble(small()), sources.last(finished))
  chex.assert_trees_all_equal(*jax.device_get((ours, theirs)))


def test_another_model_is_refused(finished):
  cfg = small(init_from=str(finished), model__mlp_dim=64)
  with pytest.raises(ConfigError) as error:
    sources.load(assembly.assemble(cfg), sources.last(finished))
  assert str(error.value) == (
      "config.model.mlp_dim = 64: must be 256, as in the run in"
      f" {str(finished)!r}"
  )


def test_another_vocabulary_of_the_same_size_is_refused(finished):
  """Without slips the word `no` is missing: one more number takes its place."""
  arithmetic = small().data.arithmetic
  cfg = small(
      init_from=str(finished),
      data__arithmetic__slip_rate=0.0,
      data__arithmetic__check_rate=0.0,
      data__arithmetic__slip_check_rate=0.0,
      data__arithmetic__max_total=arithmetic.max_total + 1,
  )
  parts = assembly.assemble(cfg)
  rule = r"init_from = '.*': must have .* token \d+ is 'no', here '\w+'"
  with pytest.raises(ConfigError, match=rule):
    sources.check_start(parts)


def test_no_checkpoint(tmp_path):
  parts = assembly.assemble(small())
  with pytest.raises(ConfigError, match="must be the folder of a run"):
    sources.named(str(tmp_path / "nothing"))
  with workdir.locked(tmp_path / "run"):
    assert not workdir.claim(tmp_path / "run", parts)
  for find in (sources.last, lambda run: sources.named(str(run))):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
      find(tmp_path / "run")
  with pytest.raises(ConfigError, match="holds no intact checkpoint that was"):
    sources.best(tmp_path / "run")


def test_a_second_interruption_stops_at_once(tmp_path, monkeypatch):
  """In place of the work: what the second Ctrl-C raises in it."""

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(trainer, "_run_stages", stop)
  with pytest.raises(Interrupted, match="stopped at once; the same command"):
    trainer.train(small(), tmp_path)


def test_a_damaged_policy_is_refused(finished, tmp_path):
  """Not replaced by an older one: it would be another policy."""
  copy = tmp_path / "copy"
  shutil.copytree(finished, copy)
  victim = next((copy / "checkpoints/rl/2/params").rglob("d/*"))
  victim.write_bytes(victim.read_bytes()[:-1])
  with pytest.raises(ConfigError, match=r"rl/2': is damaged in params/"):
    sources.load(assembly.assemble(small()), sources.last(copy))


@pytest.mark.full
def test_the_best_checkpoint_can_be_the_one_that_is_judged(
    tmp_path, capsys
):
  cfg = small(
      evaluation__checkpoint="best", evaluation__samples=2, num_steps=3
  )
  trainer.train(cfg, tmp_path)
  best = sources.best(tmp_path).step
  points = [x for x in lines_of(tmp_path) if x["stage"] == "validation"]
  # All four validations are among the five best, so the ratio alone decides.
  ratios = {x["step"]: x["efficiency@2"] for x in points}
  assert len(ratios) == 4
  assert ratios[best] == max(ratios.values())
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["checkpoint"] == f"rl/{best}"
  assert summary["samples"] == 2
  # Where it is damaged the best of the others is judged, and it says so.
  ratios.pop(best)
  capsys.readouterr()
  victim = next((tmp_path / f"checkpoints/rl/{best}/params").rglob("d/*"))
  victim.write_bytes(victim.read_bytes()[:-1])
  assert ratios[sources.best(tmp_path).step] == max(ratios.values())
  folder = tmp_path / "checkpoints" / "rl" / str(best)
  said = capsys.readouterr().out
  assert f"the best checkpoint, {folder}, is damaged" in said


def test_a_wrong_source_leaves_the_workdir_alone(finished, tmp_path):
  """A typo in init_from can be mended in the same workdir."""
  for source, message in (
      (tmp_path / "typo", r"config.init_from = '.*typo': must be the folder"),
      (tmp_path / "typo/checkpoints/rl/1", "config.init_from = .* must be the"),
      (unfinished_copy(finished, tmp_path / "young"), "is not finished"),
      (finished / "checkpoints" / "rl" / "7", r"no such checkpoint; must be"),
      (finished / "checkpoints" / "rl" / "x", "must end in the number"),
  ):
    for dry_run in (False, True):
      with pytest.raises(ConfigError, match=message):
        trainer.train(
            small(init_from=str(source)), tmp_path / "run", dry_run=dry_run
        )
      assert not (tmp_path / "run" / "config.json").exists()


def test_what_a_path_means(finished, tmp_path, monkeypatch):
  monkeypatch.chdir(finished)
  assert str(sources.named(".")) == "checkpoints/rl/2"
  assert sources.named("checkpoints/rl/1/").step == 1
  # A run may be kept anywhere.
  odd = tmp_path / "checkpoints" / "rl" / "7"
  shutil.copytree(finished, odd)
  assert sources.named(str(odd)) == sources.Source(odd, "rl", 2, named=False)


@pytest.mark.full
def test_any_checkpoint_can_be_named(finished, tmp_path):
  """Of a run that was never finished, too: it may have diverged later."""
  young = unfinished_copy(finished, tmp_path / "young")
  start = young / "checkpoints" / "rl" / "1"
  cfg = small(
      init_from=str(start),
      warm_start__num_steps=0,
      num_steps=1,
      evaluation__every=0,
      data__arithmetic__test_problems=8,
  )
  trainer.train(cfg, tmp_path / "second")
  parts = assembly.assemble(cfg)
  ours, theirs = (
      sources.load(parts, sources.named(str(path)))
      for path in (tmp_path / "second" / "checkpoints" / "rl" / "0", start)
  )
  chex.assert_trees_all_equal(ours, theirs)


def test_going_on_elsewhere_is_told(finished, tmp_path, capsys):
  copy = unfinished_copy(finished, tmp_path / "copy")
  path = copy / "environment.json"
  theirs = json.loads(path.read_text())
  assert theirs["devices"] == "1 x cpu"
  path.write_text(json.dumps(theirs | {"devices": "4 x tpu"}))
  trainer.train(small(reward__grader="host"), copy)
  assert (
      "warning: devices: the run began with '4 x tpu' and continues with '1"
      " x cpu'; the next steps"
  ) in capsys.readouterr().out
  # Nothing was left to do but the evaluation: it repeats itself.
  ours, theirs = (
      json.loads((f / "summary.json").read_text()) for f in (copy, finished)
  )
  assert ours | {"seconds": 0} == theirs | {"seconds": 0}


@pytest.mark.mesh
def test_a_dry_run_writes_nothing(tmp_path, capsys):
  trainer.train(small(), tmp_path / "run", dry_run=True)
  assert not (tmp_path / "run").exists()
  out = capsys.readouterr().out
  # Embedding 37 x 64; a layer 4 x 64 x 64 + 3 x 64 x 256 + 2 x 64; norm 64:
  # 2,368 + 2 x 65,664 + 64 = 133,760.
  assert "133,760 weights: 2 layers of width 64, vocabulary 37" in out
  assert "mesh       data 8 x fsdp 1 x tensor 1 on cpu" in out
  # 16 x 60 and 32 x 60 tokens.
  assert "warm start 12 steps of 16 chains, at most 960 tokens" in out
  assert (
      "rl         2 steps of 8 prompts x 4 samples = 32 sequences, 4 per data"
      " shard, at most 1,920 sampled tokens a step"
  ) in out
  # 32 completions, and early answers to as many.
  assert "update     1 per rollout, each of 1 micro-batch of 64 seq" in out
  assert "every 1 RL steps on 16 problems" in out
  for program in ("warm start", "rl step", "evaluation"):
    assert re.search(rf"memory     {program} about \d+\.\d MiB a device", out)
  size = r"\d+\.\d [KM]iB"
  assert re.search(
      rf"rl step about .*: state {size} \+ reference {size} \+ the larger of"
      rf" \(decoding {size} \+ cache {size} \+ probes {size}\) and \(update"
      rf" {size}\)\n",
      out,
  )
  assert "compiled" not in out


@pytest.mark.full
def test_the_estimate_of_memory_is_near_what_is_compiled():
  """Within a factor of two; the compiler fuses as it likes."""
  for overrides in (
      {"loss__micro_batches": 4, "prompts_per_step": 32},
      {"model__remat": True, "rollout__max_tokens": 256},
  ):
    cfg = small(mesh__data=1, **overrides)
    parts = assembly.assemble(cfg, jax.local_devices()[:1])
    stage = assembly.reinforcement_stage(parts)
    size = parts.cfg.prompts_per_step
    prompts = jax.tree.map(
        lambda x, n=size: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype),
        parts.task.tables["train"].prompts,
    )
    shapes = stage.spec.shapes
    step = assembly.train_step_of(parts, stage)
    compiled = step.lower(shapes, shapes.params, prompts).compile()
    needed = memory.compiled_bytes(compiled)
    estimated = memory.of_step(parts.cfg, parts.mesh, stage.spec)
    assert 0.5 < estimated.peak / needed < 2, overrides
    # Exact: fp32 weights, two moments of each, and eight numbers more.
    assert estimated.state == pytest.approx(3 * 4 * 133_760, rel=1e-4)


def test_the_estimate_of_the_warm_start():
  parts = assembly.assemble(small(mesh__data=1), jax.local_devices()[:1])
  stage = assembly.warm_start_stage(parts)
  rows = {
      "prompts": jax.tree.map(lambda x: x[:16], parts.task.tables["train"]
                              .prompts),
      "completion": np.zeros((16, 60), np.int32),
      "learned": np.zeros((16, 60), bool),
  }  # fmt: skip
  step = assembly.warm_start_step_of(parts, stage)
  compiled = step.lower(stage.spec.shapes, Demonstrations(**rows)).compile()
  estimated = memory.of_warm_start(parts.cfg, parts.mesh, stage.spec)
  assert 0.5 < estimated.peak / memory.compiled_bytes(compiled) < 2


def test_the_plan_tells_only_what_will_run(tmp_path, capsys):
  trainer.train(small(num_steps=0), tmp_path / "run", dry_run=True)
  out = capsys.readouterr().out
  assert "warm start 12 steps of 16 chains" in out
  assert not re.search(r"^(rl|update|probes|credit) ", out, re.MULTILINE)
  assert "rl step" not in out and "+ reference" not in out


def test_a_vocabulary_smaller_than_the_tokenizer():
  with pytest.raises(ConfigError) as error:
    assembly.assemble(small(model__vocab_size=20))
  assert str(error.value) == (
      "config.model.vocab_size = 20: must be at least 37, the tokenizer's"
      " size; leave it out for that"
  )


@pytest.mark.full
@pytest.mark.parametrize("during", ["save", "settle"])  # begun, and done
def test_a_request_during_the_last_save_of_a_stage_is_heard(
    tmp_path, monkeypatch, during
):
  plain, signals = getattr(Checkpoints, during), [signal.SIGINT]

  def and_ask(self, *arguments):
    if self._pending == 3 and signals and during == "settle":
      os.kill(os.getpid(), signals.pop())
    plain(self, *arguments)
    if self._pending == 3 and signals:
      os.kill(os.getpid(), signals.pop())

  monkeypatch.setattr(Checkpoints, during, and_ask)
  with pytest.raises(Interrupted, match="saved warm_start step 3 of 3"):
    trainer.train(small(warm_start__num_steps=3), tmp_path)
  assert sources.last(tmp_path).name == "warm_start/3"
  assert not (tmp_path / "checkpoints" / "rl").exists()


class _BeforeReinforcement(Exception):
  pass


@pytest.mark.full
@pytest.mark.mesh
@pytest.mark.parametrize(
    ("kl_weight", "dtype", "copies"),
    [(0.0, "float32", 0), (0.1, "float32", 1), (0.1, "bfloat16", 0.5)],
)
def test_weights_are_kept_where_something_needs_them(
    tmp_path, monkeypatch, kl_weight, dtype, copies
):
  """Beside the state only the reference, and no moments of the warm start.

  Nor where a run goes on that ended right after it.
  """
  fit, before, found = loop.fit, 0, []

  def look(stage, state, *rest):
    if stage.name == "warm_start":
      return fit(stage, state, *rest)
    others = live_bytes() - before - nbytes(state)
    found.append(others / nbytes(state.params))
    raise _BeforeReinforcement

  monkeypatch.setattr(loop, "fit", look)
  cfg = small(
      warm_start__num_steps=2,
      loss__kl_weight=kl_weight,
      model__dtype=dtype,
  )
  for _ in range(2):
    before = live_bytes()
    with pytest.raises(_BeforeReinforcement):
      trainer.train(cfg, tmp_path)
  assert found == pytest.approx([copies] * 2, abs=0.1)


def live_bytes():
  gc.collect()
  # Not the views of single shards that Orbax took to write them.
  whole = (x for x in jax.live_arrays() if len(x.sharding.device_set) > 1)
  return sum(x.nbytes for x in whole)


def nbytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["empty", "broken"])
def test_small_files_that_were_lost(finished, tmp_path, capsys, kind):
  """The power went: what can be written again is, nothing else is guessed."""
  copy = tmp_path / "copy"
  shutil.copytree(finished, copy)
  text = {"empty": "", "broken": "{"}[kind]
  for name in ("environment.json", "summary.json"):
    (copy / name).write_text(text)
  cfg = small(reward__grader="host")
  trainer.train(cfg, copy)
  said = capsys.readouterr().out
  assert "environment.json': is not JSON" in said
  assert "summary.json': is not JSON" in said
  # Finished again: where it began is of no interest any more.
  trainer.train(cfg, copy)
  said = capsys.readouterr().out
  assert "nothing to do" in said and "warning" not in said
  ours, theirs = (
      json.loads((f / "summary.json").read_text()) for f in (copy, finished)
  )
  assert ours | {"seconds": 0} == theirs | {"seconds": 0}
  (copy / "config.json").unlink()
  with pytest.raises(ConfigError, match="has checkpoints but no config"):
    trainer.train(cfg, copy)


def test_a_path_may_be_written_in_two_ways(finished, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for source in (finished, pathlib.Path(os.path.relpath(finished))):
    parts = assembly.assemble(small(init_from=str(source)))
    with workdir.locked(tmp_path / "run"):
      assert not workdir.claim(tmp_path / "run", parts)
  with pytest.raises(ConfigError, match=r"config\.init_from = '/else"):
    workdir.claim(
        tmp_path / "run", assembly.assemble(small(init_from="/elsewhere"))
    )


@pytest.mark.parametrize("kind", ["file", "broken", "list"])
def test_a_workdir_that_cannot_be_one(tmp_path, kind):
  folder = tmp_path / "run"
  if kind == "file":
    folder.write_text("")
    message = "must be a folder that can be written"
  else:
    folder.mkdir()
    text = {"broken": "{", "list": "[]"}[kind]
    (folder / "config.json").write_text(text)
    message = "config.json': is not"
  with pytest.raises(ConfigError, match=message), workdir.locked(folder):
    workdir.claim(folder, assembly.assemble(small()))


def test_a_config_survives_the_workdir(finished):
  cfg = small(reward__grader="host", log__wandb="offline")
  assert workdir.load_config(finished) == assembly.assemble(cfg).cfg
