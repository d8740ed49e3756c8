"""The plan and the table of the study of a language model."""

import json

import lm_trials
import pytest
from lm_trials import Study, Trial

from iapo_jax.config import parsing, presets
from iapo_jax.core.errors import ConfigError


def record(method, start, seed, accuracy, tokens):
  return {
      "method": method, "start": start, "seed": seed, "accuracy": accuracy,
      "mean_tokens": tokens, "mean_answer_tokens": 8.0, "format_rate": 1.0,
      "calibration_gap": -0.25,
  }  # fmt: skip


def test_a_warm_start_comes_before_the_runs_from_it():
  planned = lm_trials.plan(2, 3)
  assert len(planned) == len(set(planned)) == 2 + 2 * 3 * len(lm_trials.METHODS)
  for i, trial in enumerate(planned):
    assert Trial("sft", trial.start, trial.start) in planned[: i + 1]
  # Seed by seed: after a third of the runs every method has one from each.
  first = planned[: 2 + 2 * len(lm_trials.METHODS)]
  assert {x.seed for x in first if x.method != "sft"} == {0}
  assert len({x.folder for x in planned}) == len(planned)


def test_the_table_by_hand():
  found = [
      record("sft", 0, 0, 0.5, 100.0),
      record("grpo", 0, 0, 0.6, 100.0), record("grpo", 0, 1, 0.5, 80.0),
      record("to_go", 0, 0, 0.58, 50.0), record("to_go", 0, 1, 0.5, 40.0),
      record("chance", 0, 2, 0.7, 60.0),
  ]  # fmt: skip
  lines = lm_trials.table(found).splitlines()[2:]
  rows = {
      cells[2].strip(): [x.strip() for x in cells[3:-1]]
      for cells in (line.split("|") for line in lines)
  }
  assert rows["warm start"] == ["1", "0.500", "100.0", "8.0", "1.00", "-0.25",
                                "", ""]  # fmt: skip
  # Mean 0.55, s = 0.1 / sqrt(2), half = 12.7062 * s / sqrt(2) = 0.635
  assert rows["GRPO"][1] == "0.550 (-0.085 to 1.185)"
  # Differences -2 and 0 points: mean -1, half = 12.7062 * sqrt(2) / sqrt(2);
  # 50 / 100 and 40 / 80 are 50 % both.
  assert rows["IAPO to_go"][-2:] == ["-1.0 (-13.7 to +11.7)", "50 (50 to 50)"]
  # Without GRPO's run of its seed there is no difference.
  assert rows["chance of the gold answer, priced"][-2:] == ["", ""]


def test_the_table_is_put_between_the_marks(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("before <!-- results -->\nold\n<!-- results --> after")
  lm_trials.fill(page, [record("sft", 0, 0, 0.5, 100.0)])
  text = page.read_text()
  assert text.startswith("before <!-- results -->\n\n|")
  assert text.endswith("|\n\n<!-- results --> after")
  assert "old" not in text
  assert "0.500" in text


def test_results_of_another_study_are_kept_apart(tmp_path):
  output, study = tmp_path / "lm.json", Study("smollm2:legs", tmp_path)
  assert study.recorded(output) == []
  kept = {"config": "smollm2:legs", "trials": [record("sft", 0, 0, 0.5, 9.0)]}
  output.write_text(json.dumps(kept))
  assert study.recorded(output) == kept["trials"]
  for other in (
      Study("smollm2:sums", tmp_path), Study("smollm2:legs", tmp_path, True),
  ):  # fmt: skip
    with pytest.raises(ConfigError, match="has results of smollm2:legs, not"):
      other.recorded(output)


def test_only_what_nothing_begins_from_is_deleted(tmp_path):
  study = Study("smollm2:legs", tmp_path)
  for trial in (Trial("sft", 0, 0), Trial("grpo", 0, 1)):
    for _ in range(2):  # again, as after a stop in between
      study.clean(trial)
    for name in (trial.folder, f"{trial.folder}-probes"):
      (tmp_path / name / "checkpoints" / "rl").mkdir(parents=True)
    study.clean(trial)
  left = {str(x.parent.relative_to(tmp_path))
          for x in tmp_path.rglob("checkpoints")}  # fmt: skip
  assert left == {"start-0/sft"}


@pytest.mark.parametrize("task", ["legs", "sums", "mixed", "gsm8k"])
@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_variant_is_a_configuration(task, scale):
  variants = presets.read("smollm2")["VARIANTS"]
  assert {"sft", *lm_trials.METHODS} <= set(variants)
  for variant in variants:
    config = presets.load(f"smollm2:{task}-{variant}-{scale}")
    cfg = parsing.parse(config)
    assert not cfg.num_steps or cfg.loss.kl_weight == 0
