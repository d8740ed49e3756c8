"""What is kept, and that nothing damaged is ever loaded."""

import contextlib
import hashlib
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest
from runs import SHORT, lines, unfinished_copy

from iapo_jax.config import parsing as config_lib
from iapo_jax.core.errors import ConfigError, SaveError
from iapo_jax.run import assembly, checkpoint, logs, sources, trainer
from iapo_jax.run.checkpoint import Checkpoints, Progress


@pytest.fixture(scope="module")
def parts():
  config = config_lib.default()
  config.num_steps = 4
  config.warm_start.num_steps = 3
  config.evaluation.update({"every": 2, "problems": 8, "batch_size": 8})
  config.checkpoint.every = 1
  config.data.arithmetic.update({"train_problems": 64, "test_problems": 8})
  config.update_from_flattened_dict(SHORT)
  return assembly.assemble(config_lib.parse(config), jax.local_devices())


@pytest.fixture(scope="module")
def state(parts):
  stage = assembly.reinforcement_stage(parts)
  return assembly.create_state(parts, stage), stage.spec


def progress(step):
  return Progress(step, {"next_index": 10 * step}, {"metrics.jsonl": step})


def write(folder, state, steps, accuracies=None, **kwargs):
  keep = {"keep_last": 2, "keep_best": 2} | kwargs
  accuracies = accuracies or {}
  with Checkpoints(folder, **keep) as checkpoints:
    for step in steps:
      metrics = None
      if step in accuracies:
        metrics = {"accuracy": accuracies[step]}
      checkpoints.save(state, progress(step), metrics)


def test_the_start_the_newest_and_the_best_are_kept(state, tmp_path):
  folder = tmp_path / "checkpoints" / "rl"
  accuracies = {0: 0.1, 2: 0.9, 4: 0.5, 6: 0.9, 8: 0.2}
  write(folder, state[0], range(5), accuracies)
  assert checkpoint.steps(folder) == [0, 2, 3, 4]
  # A restart knows the accuracies of what was saved before it.
  write(folder, state[0], range(5, 9), accuracies)
  assert checkpoint.steps(folder) == [0, 2, 6, 7, 8]


def test_a_checkpoint_is_restored_bit_by_bit(state, tmp_path):
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [3])
  assert checkpoint.fault(folder, 3) is None
  restored, where = checkpoint.restore(folder, 3, state[1])
  assert where == progress(3)
  chex.assert_trees_all_equal(restored, state[0])
  for a, b in zip(
      jax.tree.leaves(restored), jax.tree.leaves(state[0]), strict=True
  ):
    assert a.sharding == b.sharding


def test_a_step_counts_once_it_is_written(state, tmp_path):
  folder = tmp_path / "checkpoints" / "rl"
  with Checkpoints(folder, keep_last=2, keep_best=2) as checkpoints:
    checkpoints.poll()  # of nothing
    checkpoints.settle()
    checkpoints.save(state[0], progress(1))
    assert checkpoint.steps(folder) == []
    while not checkpoint.steps(folder):
      checkpoints.poll()
    checkpoints.save(state[0], progress(2))
    checkpoints.save(state[0], progress(3))  # waits for the one before
    assert checkpoint.steps(folder) == [1, 2]
    checkpoints.settle()
    assert checkpoint.steps(folder) == [2, 3]
    checkpoints.save(state[0], progress(4))
  assert checkpoint.steps(folder) == [3, 4]


def test_a_donated_state_is_what_was_saved(state, tmp_path):
  """Training goes on, in the same memory, while it is written."""
  folder = tmp_path / "checkpoints" / "rl"
  train = jax.jit(
      lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0
  )
  moved = jax.tree.map(jnp.copy, state[0])
  with Checkpoints(folder, keep_last=2, keep_best=2) as checkpoints:
    checkpoints.save(moved, progress(1))
    for _ in range(3):
      moved = train(moved)
  restored, _ = checkpoint.restore(folder, 1, state[1])
  chex.assert_trees_all_equal(restored, state[0])


def flip_a_bit(path):
  victim = max((path / "rest").rglob("d/*"), key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 4
  victim.write_bytes(content)
  return f"is damaged in {victim.relative_to(path).as_posix()}"


def cut(path):
  victim = max((path / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
  victim.write_bytes(victim.read_bytes()[:-7])
  return f"is damaged in {victim.relative_to(path).as_posix()}"


def lose(path):
  (path / "progress" / "metadata").unlink()
  return "lacks progress/metadata"


def unseal(path):
  (path / "checksums.json").unlink()
  return "was not completely written"


def break_seal(path):
  (path / "checksums.json").write_text("{")
  return "has a damaged checksums.json"


def replace_seal(path):
  (path / "checksums.json").write_text("[]")
  return "has a damaged checksums.json"


def add(path):
  (path / "params" / "stray").write_text("x")
  return "is damaged in params/stray"


@pytest.mark.parametrize(
    "harm", [flip_a_bit, cut, lose, unseal, break_seal, replace_seal, add]
)
def test_the_previous_one_is_used_and_it_says_so(
    harm, state, tmp_path, capsys
):
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [1, 2])
  reason = harm(folder / "2")
  with pytest.raises(ConfigError, match="rl/2': "):
    checkpoint.load_params(
        folder, 2, state[1].shapes.params, state[1].shardings.params
    )
  assert checkpoint.newest_intact(folder) == 1
  out = capsys.readouterr().out
  assert f"warning: checkpoint {folder}/2 {reason}; it is not used" in out
  # Nothing is lost, and the step can be saved again.
  assert (tmp_path / "checkpoints" / "damaged" / "rl-2-1").is_dir()
  write(folder, state[0], [2])
  assert checkpoint.fault(folder, 2) is None
  assert checkpoint.newest_intact(folder) == 2


def test_an_older_one_may_be_damaged(state, tmp_path, capsys):
  """Orbax reads the metrics of all of them: it never sees the damaged."""
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [1, 2, 3], {1: 0.5, 2: 0.1, 3: 0.2}, keep_last=3)
  (folder / "1" / "metrics" / "metrics").write_text("{")
  unseal(folder / "2")
  assert checkpoint.newest_intact(folder) == 3
  assert capsys.readouterr().out.count("it is not used") == 2
  assert checkpoint.steps(folder) == [3]
  checkpoint.restore(folder, 3, state[1])
  write(folder, state[0], [4], {4: 0.3})
  assert checkpoint.steps(folder) == [3, 4]


def test_what_is_not_sealed_is_not_the_last(state, tmp_path):
  """Another process may be writing it just now."""
  folder = checkpoint.stage_folder(tmp_path, "rl")
  write(folder, state[0], [1, 2])
  unseal(folder / "2")
  assert sources.last(tmp_path).name == "rl/1"


def test_none_is_intact(state, tmp_path):
  folder = tmp_path / "checkpoints" / "rl"
  assert checkpoint.newest_intact(folder) is None
  write(folder, state[0], [1, 2])
  for step in ("1", "2"):
    unseal(folder / step)
  assert checkpoint.newest_intact(folder) is None
  assert checkpoint.fault(folder, 1) == "is not there"


def test_a_half_written_folder_is_deleted(state, tmp_path, capsys):
  """It never was a checkpoint. Kept, every kill would cost the disk another."""
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [1])
  half = folder / "2.orbax-checkpoint-tmp-123"
  shutil.copytree(folder / "1" / "params", half / "params")
  write(folder, state[0], [2])
  assert "was not completely written" in capsys.readouterr().out
  assert not half.exists()
  assert checkpoint.steps(folder) == [1, 2]
  assert not (tmp_path / "checkpoints" / "damaged").exists()


def test_one_that_is_deleted_while_it_is_read(state, tmp_path, monkeypatch):
  """Another process keeps its newest only; a reader of an old one is told."""
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [1])
  digest = hashlib.file_digest

  def then_deleted(*arguments):
    shutil.rmtree(folder / "1" / "params")
    return digest(*arguments)

  monkeypatch.setattr(hashlib, "file_digest", then_deleted)
  assert checkpoint.fault(folder, 1) == "is being removed"


def test_old_steps_leave_when_the_newest_counts(state, tmp_path, monkeypatch):
  """And by a rename: a step that lost files was never being deleted."""
  folder = tmp_path / "checkpoints" / "rl"
  seen, seal = [], checkpoint.seal

  def look(path):
    seen.append(sorted(p.name for p in (folder / "removed").glob("*")))
    seal(path)

  monkeypatch.setattr(checkpoint, "seal", look)
  write(folder, state[0], [1, 2, 3, 4])
  assert seen == [[], [], ["1"], ["2"]]
  assert not (folder / "removed").exists()
  assert checkpoint.steps(folder) == [3, 4]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: Error: a story [os_error_code='28']"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_is_told_in_a_line(state, tmp_path, monkeypatch, error):
  folder = tmp_path / "checkpoints" / "rl"

  def fail(*_, **__):
    raise error

  with Checkpoints(folder, keep_last=2, keep_best=2) as checkpoints:
    checkpoints.save(state[0], progress(1))
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(SaveError) as told:
      checkpoints.save(state[0], progress(2))
  assert str(told.value) == (
      f"checkpoint {folder}/2 could not be written (No space left on device);"
      " the same command continues from the checkpoint before it, or starts"
      " over if there is none"
  )
  assert checkpoint.newest_intact(folder) == 1


def test_a_full_disk_is_seen_before_anything_is_written(
    state, tmp_path, monkeypatch
):
  folder = tmp_path / "checkpoints" / "rl"
  # fp32 weights and two moments of each, once though eight devices have them;
  # and a few numbers more. Weights: an embedding of 36 x 64, two layers of
  # 65,664 (tests/test_trainer.py), a norm of 64; together 133,696.
  needed = sum(x.nbytes for x in jax.tree.leaves(state[0]))
  assert needed == pytest.approx(3 * 4 * 133_696, rel=1e-4)
  usage = shutil.disk_usage(tmp_path)
  for free, fails in ((needed - 1, True), (needed, False)):
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
      patch.setattr(
          checkpoint.shutil, "disk_usage", lambda _, n=free: usage._replace(
              free=n
          )
      )  # fmt: skip
      if fails:
        told = stack.enter_context(pytest.raises(SaveError))
      write(folder, state[0], [1])
    assert checkpoint.steps(folder) == ([] if fails else [1])
  assert "(it needs 1.5 MiB, the disk has 1.5 MiB left)" in str(told.value)


def test_other_errors_of_a_save_are_not_explained_away(
    state, tmp_path, monkeypatch
):
  folder = tmp_path / "checkpoints" / "rl"
  error = ValueError("RESOURCE_EXHAUSTED: of something else")

  def fail(*_, **__):
    raise error

  with Checkpoints(folder, keep_last=2, keep_best=2) as checkpoints:
    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(ValueError, match="of something else"):
      checkpoints.save(state[0], progress(2))


def test_what_cannot_be_read_is_left_alone(state, tmp_path, monkeypatch):
  """It may be intact: a run that goes on without it would lose its steps."""
  folder = tmp_path / "checkpoints" / "rl"
  write(folder, state[0], [1, 2])
  read = checkpoint._checksums

  def broken(path, largest=None):
    if path.name == "2":
      raise OSError(5, "Input/output error")
    return read(path, largest)

  monkeypatch.setattr(checkpoint, "_checksums", broken)
  assert checkpoint.fault(folder, 2) == "cannot be read (Input/output error)"
  with pytest.raises(OSError, match="Input/output"):
    checkpoint.newest_intact(folder)
  assert checkpoint.steps(folder) == [1, 2]


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
  """A finished run."""
  folder = tmp_path_factory.mktemp("runs") / "whole"
  trainer.train(parts.cfg, folder)
  return folder


def test_training_goes_on_from_the_previous_one(
    parts, whole, tmp_path, capsys
):
  """The newest is damaged: the run ends as the undamaged one did."""
  damaged = unfinished_copy(whole, tmp_path / "damaged")
  flip_a_bit(damaged / "checkpoints" / "rl" / "4")
  trainer.train(parts.cfg, damaged)
  out = capsys.readouterr().out
  assert "rl/4 is damaged in rest/" in out
  assert "resumes at rl step 3 of" in out
  assert_same_logs(damaged, whole)
  spec = assembly.reinforcement_stage(parts).spec
  (ours, _), (theirs, _) = (
      checkpoint.restore(checkpoint.stage_folder(folder, "rl"), 4, spec)
      for folder in (damaged, whole)
  )
  chex.assert_trees_all_equal(ours, theirs)


def assert_same_logs(ours, theirs):
  for name in logs.FILES:
    assert lines(ours, name) == lines(theirs, name), name


@pytest.mark.full
def test_all_of_a_stage_is_damaged(parts, whole, tmp_path, capsys):
  """The warm start's end is intact: reinforcement learning starts over."""
  damaged = unfinished_copy(whole, tmp_path / "damaged")
  for step in checkpoint.steps(damaged / "checkpoints" / "rl"):
    unseal(damaged / "checkpoints" / "rl" / str(step))
  trainer.train(parts.cfg, damaged)
  assert "resumes at warm_start step 3 of" in capsys.readouterr().out
  assert_same_logs(damaged, whole)


@pytest.mark.full
def test_a_damaged_reference(parts, whole, tmp_path, capsys):
  """The KL penalty needs the policy that reinforcement learning began with."""
  damaged = unfinished_copy(whole, tmp_path / "damaged")
  rl = damaged / "checkpoints" / "rl"
  cut(rl / "0")
  unseal(rl / "4")
  # The warm start ended with the same policy.
  again = tmp_path / "again"
  shutil.copytree(damaged, again)
  trainer.train(parts.cfg, again)
  out = capsys.readouterr().out
  start, end = again / "checkpoints/rl/0", again / "checkpoints/warm_start/3"
  assert f"checkpoint {start} is not there; {end} is read instead" in out
  assert lines(again) == lines(whole)
  # Without it there is nothing to go on with.
  unseal(damaged / "checkpoints" / "warm_start" / "3")
  with pytest.raises(ConfigError, match="the KL penalty needs that policy"):
    trainer.train(parts.cfg, damaged)


def test_the_last_checkpoint_of_a_run(state, tmp_path):
  write(checkpoint.stage_folder(tmp_path, "warm_start"), state[0], [9])
  assert sources.last(tmp_path).name == "warm_start/9"
  write(checkpoint.stage_folder(tmp_path, "rl"), state[0], [0, 3])
  assert sources.last(tmp_path).name == "rl/3"
  with pytest.raises(ConfigError, match="holds no checkpoint"):
    sources.last(pathlib.Path("/nowhere"))
