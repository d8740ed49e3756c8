"""The command that compares methods: one real trial of each kind, small."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import jax
import misplaced
import numpy as np
import pytest
import runs
import starts as starts_lib
import study
import trials
from recorded import make_params, make_setup, record
from trials import Trial

from iapo_jax.config import presets
from iapo_jax.core import files, sharding
from iapo_jax.core.errors import ConfigError
from iapo_jax.rl import policy, train_step
from iapo_jax.run import assembly, sources
from iapo_jax.run import workdir as workdir_lib

ROOT = pathlib.Path(__file__).parents[3]


def make_study(task, methods, folder):
  return study.Study(
      configure=presets.read(task)["get_config"],
      methods=methods,
      folder=folder,
      num_steps=80,
      slack=0.005,
      starts=1,
      seeds=2,
      small=True,
  )


def test_trials_and_what_is_collected(tmp_path):
  todo = make_study("slips", ["grpo", "dapo", "to_go", "misplaced"], tmp_path)
  starts = [todo.warm_start(0), todo.warm_start(0, early=False)]
  assert [x.folder.name for x in starts] == ["start-0", "start-0-never-early"]
  assert starts[1].config.warm_start.early_share == 0
  tried = [
      Trial("grpo", 1, 0, trials.TUNING_SEED), Trial("misplaced", 0, 0, 3),
  ]  # fmt: skip
  planned = [todo.trial(x) for x in tried]
  # What nobody reads is not probed.
  assert [x.config.probe.stride for x in planned] == [0, 1]
  assert [x.own.probing for x in planned] == [None, misplaced.run_probes]
  assert planned[0].config.optimizer.learning_rate == 2e-4
  todo.run_trials(tried)
  todo.finish(planned)  # nothing is left to do
  found = todo.result(tried[1])
  assert found["method"] == "misplaced"
  assert 0 <= found["check_after_slip"] <= 1
  assert found["probe_tokens"] > 0
  found = todo.collect()
  assert [x["method"] for x in found["tuning"]] == ["grpo"]
  assert found["tuning"][0]["probe_tokens"] == 0
  assert found["tuning"][0]["sampled_tokens"] > 0
  # Without all settings of GRPO and DAPO nothing is chosen.
  assert (found["chosen"], found["trials"]) == ({}, [])
  assert [x["start"] for x in found["warm_starts"]] == [0]
  name = found["warm_starts"][0]["begun_from"]
  assert found["tuning"][0]["begun_from"] == name

  # Recorded trials are not run again, elsewhere either.
  again = dataclasses.replace(todo, folder=tmp_path / "new", recorded=found)
  again.run_trials([tried[0]])
  assert not again.folder.exists()
  assert again.collect() == found
  # Warm starts that are packed are not trained again; the rest goes on.
  packs = dataclasses.replace(todo, packed=str(tmp_path / "packed"))
  packs.pack()
  assert [x.name for x in tmp_path.glob("packed-*")] == [
      "packed-start-0.tar.gz"
  ]
  elsewhere = dataclasses.replace(packs, folder=tmp_path / "elsewhere")
  elsewhere.run_trials([tried[0]])
  assert starts[0].folder.joinpath("metrics.jsonl").exists()
  assert not elsewhere.warm_start(0).folder.joinpath("metrics.jsonl").exists()
  theirs, ours = (x.result(tried[0]) for x in (todo, elsewhere))
  for name in theirs:
    assert name.endswith("seconds") or theirs[name] == ours[name], name

  # Another process may unpack at the same time.
  for _ in range(2):
    starts_lib.unpack(tmp_path / "packed-start-0.tar.gz", tmp_path / "start-0")

  # What is damaged is neither packed nor begun from.
  damaged = tmp_path / "damaged" / "start-0"
  starts_lib.unpack(tmp_path / "packed-start-0.tar.gz", damaged)
  victim = next(damaged.glob("checkpoints/*/*/params/**/d/*"))
  victim.write_bytes(victim.read_bytes()[:-1])
  with pytest.raises(ConfigError, match=r"^checkpoint '.*is damaged in par"):
    starts_lib.pack(damaged, tmp_path / "damaged.tar.gz")
  with tarfile.open(tmp_path / "changed.tar.gz", "w:gz") as tar:
    tar.add(damaged, "start-0")
  with pytest.raises(ConfigError, match=r"gz': its checkpoint is damaged in"):
    starts_lib.unpack(tmp_path / "changed.tar.gz", tmp_path / "x" / "start-0")

  # Another configuration is another trial.
  assert again._configuration(tried[0]) == todo._configuration(tried[0])
  changed = dataclasses.replace(again, num_steps=1, small=False)
  with pytest.raises(ConfigError, match=r"grpo/setting-1.*is of another conf"):
    changed.run_trials([tried[0]])


def test_the_command_keeps_all_records(tmp_path):
  """Fewer seeds and starts, or another choice, leave them in the file."""
  recorded = ROOT / "docs" / "evidence" / "mixed.json"
  output = shutil.copy(recorded, tmp_path)
  command = [
      sys.executable, ROOT / "experiments/studies/comparison/compare.py",
      "--task=mixed", "--collect_only", "--methods=grpo,dapo", "--starts=1",
      "--seeds=1", f"--output={output}", "--workdir=runs",
  ]  # fmt: skip
  done = subprocess.run(
      command, cwd=tmp_path, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  ours, theirs = (
      files.read_json(pathlib.Path(x)) for x in (output, recorded)
  )
  for kind in ("tuning", "trials"):
    assert sorted(ours[kind], key=str) == sorted(theirs[kind], key=str) != []
  assert os.listdir(tmp_path) == ["mixed.json"]


@pytest.mark.parametrize("task", ["mixed", "slips"])
def test_committed_warm_starts_can_be_used(task, tmp_path):
  evidence = ROOT / "docs" / "evidence"
  recorded = files.read_json(evidence / f"{task}.json")
  todo = dataclasses.replace(
      make_study(task, [], tmp_path), small=False, packed=str(evidence / task)
  )
  for row in recorded["warm_starts"]:
    planned = todo.warm_start(row["start"], row.get("early_answers", True))
    todo._unpack(planned)
    # Its configuration is the one that would be trained today.
    assert planned.is_finished()
    assert study._name_of(planned) == row["begun_from"]
  run = todo.warm_start(0).folder
  parts = assembly.assemble(
      workdir_lib.load_config(run), jax.devices()[:1], home=run
  )
  params = sources.load(parts, sources.last(run))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_a_pack_that_is_damaged(tmp_path):
  file = tmp_path / "start.tar.gz"
  file.write_bytes(b"nothing")
  with pytest.raises(ConfigError, match=r"is no packed run start-0 \("):
    starts_lib.unpack(file, tmp_path / "start-0")
  assert not (tmp_path / "start-0").exists()


def test_others_can_read_what_was_packed(tmp_path):
  """Whatever the modes in the archive; the umask decides."""
  packed = ROOT / "docs" / "evidence" / "mixed-start-0.tar.gz"
  closed = tmp_path / "closed.tar.gz"
  with tarfile.open(packed) as source, tarfile.open(closed, "w:gz") as target:
    for member in source:
      content = source.extractfile(member)
      target.addfile(member.replace(mode=0o700), content)
  with runs.umask(0o027):
    starts_lib.unpack(closed, tmp_path / "new" / "start-0")
    assert not runs.odd_modes(tmp_path / "new")


def test_configurations_are_told_apart(tmp_path):
  todo = make_study("mixed", ["grpo", "dapo", "to_go"], tmp_path)
  others = [
      Trial("to_go", 1, 0, 3), Trial("to_go", 2, 0, 3), Trial("to_go", 1, 1, 3),
      Trial("to_go", 1, 0, 4), Trial("misplaced", 1, 0, 3),
      Trial("never_early", 1, 0, 3), Trial("shuffled", 1, 0, 3),
  ]  # fmt: skip
  names = {todo._configuration(x) for x in others}
  assert len(names) == len(others)
  # The folder is none of it.
  moved = dataclasses.replace(todo, folder=tmp_path / "elsewhere")
  assert {moved._configuration(x) for x in others} == names


def test_a_setting_is_chosen_when_all_are_known(tmp_path, monkeypatch):
  methods = ["grpo", "dapo", "to_go", "misplaced"]
  todo = make_study("mixed", methods, tmp_path)
  accuracies = {
      "grpo": [1, 3, 2, 0], "dapo": [1, 1, 2, 0], "to_go": [3, 3, 3, 0],
  }  # fmt: skip

  def result(_, trial):
    i = trial.setting
    accuracy = accuracies[trial.method][i]
    return {"setting": i, "accuracy": accuracy, "mean_tokens": 9 - i}

  monkeypatch.setattr(study.Study, "result", result)
  # Of to_go the shortest of three equals; the ablation has its setting.
  assert todo.chosen() == {"grpo": 1, "dapo": 2, "to_go": 2, "misplaced": 2}


@pytest.mark.parametrize("chunk", [1, 16])
def test_misplaced_probes_are_exact_in_chunks_of_one_alone(chunk):
  setup = make_setup()
  params = make_params(setup)
  rolled = record(setup, params)
  vocabulary = setup.parts.task.vocabulary

  @jax.jit
  def run(params, rolled, prompts):
    with sharding.scope(setup.parts.mesh):
      frozen = policy.for_decoding(
          params, setup.stage.spec.param_axes, cfg=setup.cfg.model
      )
      grades = setup.parts.grader(rolled, prompts)
      inputs = frozen, rolled, grades, prompts, setup.cfg, vocabulary
      return (
          train_step.run_probes(*inputs),
          misplaced.run_probes(*inputs, chunk=chunk),
      )

  exact, ours = run(params, rolled, setup.prompts())
  np.testing.assert_array_equal(exact.spent, ours.spent)
  gap = np.abs(np.asarray(exact.entropy) - np.asarray(ours.entropy))
  if chunk == 1:
    assert gap.max() < 1e-5
    np.testing.assert_allclose(exact.logprob, ours.logprob, atol=1e-5)
    np.testing.assert_array_equal(exact.hit, ours.hit)
  else:
    assert gap.max() > 1e-2
