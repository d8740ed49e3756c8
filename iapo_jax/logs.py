"""What a run tells: metrics as JSON lines, and warnings."""

import json
import pathlib

import tqdm

Metrics = dict[str, float]


class MetricsLog:
  """One JSON object a line, flushed, so that a reader sees every step."""

  def __init__(self, workdir: pathlib.Path) -> None:
    self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")

  def write(self, stage: str, step: int, metrics: Metrics) -> None:
    """Appends a line.

    Args:
      stage: `warm_start`, `rl` or `validation`.
      step: of the stage, counted from 1.
      metrics: by name.
    """
    line = {"stage": stage, "step": step} | metrics
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()


class ProbeWarner:
  """Says once each what makes information credit meaningless."""

  def __init__(self) -> None:
    self._said: set[str] = set()

  def check(self, metrics: Metrics) -> None:
    """Looks at one step's metrics.

    Args:
      metrics: by name; without probes nothing is said.
    """
    if "probe/entropy" not in metrics:
      return
    moved = metrics["probe/entropy_first"] - metrics["probe/entropy_last"]
    gap = metrics["probe/calibration_gap"]
    if abs(moved) < 0.05:
      self._say(
          "still",
          f"probes do not move (H_0 − H_R = {moved:.3f} nats): is the"
          " elicitation one the policy can answer?",
      )
    if abs(gap) > 0.5:
      self._say(
          "gap",
          f"probes are badly calibrated (gold log-likelihood + entropy ="
          f" {gap:.2f} nats; 0 is calibrated)",
      )
    if metrics["length/unfinished"] > 0.9:
      self._say(
          "cut",
          "over 90 % of completions reach rollout.max_tokens without an EOS",
      )

  def _say(self, kind: str, text: str) -> None:
    if kind not in self._said:
      self._said.add(kind)
      tqdm.tqdm.write(f"warning: {text}")
