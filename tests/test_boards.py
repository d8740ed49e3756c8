"""Metrics for W&B, read back by its own reader."""

import math
import sys

import pytest
import wandb
from runs import read_wandb

from iapo_jax.core.errors import ConfigError
from iapo_jax.run import boards, logs
from iapo_jax.run.logs import RunLog


def logged(folder):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text('{"seed": 3}')
  return folder


def test_offline_files_have_every_line(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_PROJECT", "mine")
  folder = logged(tmp_path / "first")
  with RunLog(folder, wandb="offline") as log:
    log.write("validation", 0, {"accuracy": 0.25})
    log.write("rl", 1, {"reward/total": 0.5, "update/kl": float("nan")})
    position = log.position()
    log.write("rl", 2, {"reward/total": 0.75})
  history, run = read_wandb(folder, 3)
  assert [x["_step"] for x in history] == [0, 1, 2]
  assert history[0]["validation/accuracy"] == 0.25
  assert history[1]["rl/step"] == 1
  assert math.isnan(history[1]["rl/update/kl"])
  assert (run.project, run.display_name) == ("mine", "first")
  assert {x.key: x.value_json for x in run.config.update}["seed"] == "3"

  # It goes on where the checkpoint was, as the same run of W&B.
  with RunLog(folder, position, wandb="offline") as log:
    log.write("rl", 2, {"reward/total": 0.75})
    log.write("rl", 3, {"reward/total": 1.0})
  again, resumed = read_wandb(folder, 4)
  assert [x.get("rl/step") for x in again] == [None, 1, 2, 3]
  assert resumed.run_id == run.run_id
  assert len(logs.read(folder, logs.METRICS)) == 4

  # Begun anew, it is another one.
  with RunLog(folder, wandb="offline") as log:
    log.write("rl", 1, {"reward/total": 0.1})
  other, fresh = read_wandb(folder, 1)
  assert (len(other), fresh.run_id == run.run_id) == (1, False)


def test_what_the_server_has_is_not_sent_again(tmp_path, monkeypatch):
  """Where the server's run, resumed, says that it has two lines."""

  class Resumed:
    starting_step = 2

    def __init__(self):
      self.sent = []

    def define_metric(self, *_, **__):
      pass

    def log(self, values, step, commit):
      assert commit
      self.sent.append((step, values))

    def finish(self):
      pass

  server = Resumed()
  monkeypatch.setattr(wandb, "init", lambda **_: server)
  board = boards.WeightsAndBiases(logged(tmp_path), "online")
  for step in (1, 2, 3):
    board.write({"stage": "rl", "step": step, "a": step / 2})
  assert server.sent == [(2, {"rl/step": 3, "rl/a": 1.5})]


def test_without_wandb_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=r"wandb = 'offline': needs W&B: pip"):
    boards.WeightsAndBiases(logged(tmp_path), "offline")


def test_a_name_that_was_changed_is_refused(tmp_path):
  (logged(tmp_path) / "wandb.json").write_text("{}")
  with pytest.raises(ConfigError, match=r"wandb\.json': has no id; delete"):
    boards.WeightsAndBiases(tmp_path, "offline", anew=False)


def test_without_an_account_online_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_API_KEY", "not a key")
  rule = r"log.wandb = 'online': W&B does not start: "
  with pytest.raises(ConfigError, match=rule):
    boards.WeightsAndBiases(logged(tmp_path), "online")
