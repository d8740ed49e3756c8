"""Warnings about metrics of reinforcement learning that go wrong silently.

Nothing here stops a run. Every warning is given once, after its reason has held
for some steps: one odd batch is not enough.
"""

import collections
from collections.abc import Callable

from iapo_jax.core import endings
from iapo_jax.rl import finite
from iapo_jax.run.logs import Metrics

Warn = Callable[[int, str], None]

PATIENCE = 5  # steps in a row before a warning
WINDOW = 10  # steps whose means are compared with those of other windows
LOST_ACCURACY = 0.1  # absolute, below the best window
ALL = endings.ALL  # share
LOST_LENGTH = 0.2  # relative, of the best window's reasoning length
MOVED = 0.2  # relative, of lengths of reasoning and answer
MOST_OPEN = 0.5  # share of completions whose reasoning may have no end
MOST_TIMEOUTS = 0.01  # share of answers that may take too long
LARGEST_GAP = 1.0  # nats between two log-probabilities of the same token
RATIOS = (0.8, 1.25)  # allowed mean ratio, policy over sampling policy
LARGEST_KL = 1.0  # nats a token
_GAP = "gap"


class Watch:
  """The state of the warnings: a function of the metrics seen so far."""

  def __init__(self, max_tokens: int, *, golds: bool = True) -> None:
    """Begins before the first step.

    Args:
      max_tokens: `rollout.max_tokens`.
      golds: whether the gold answers are the only right ones, so that probes
        can be compared with them.
    """
    self._max_tokens = max_tokens
    self._golds = golds
    self._streaks: collections.Counter[str] = collections.Counter()
    self._given: set[str] = set()
    self._window: collections.deque[Metrics] = collections.deque(maxlen=WINDOW)
    self._best = (0.0, 0.0)
    self._longest = (0.0, 0.0)

  def check(self, step: int, metrics: Metrics, warn: Warn) -> None:
    """Checks one step and calls `warn` with the step and each new warning."""
    if finite.offenders(metrics):
      return  # `loop` warns of these
    self._window.append(metrics)
    found = troubles(metrics) | self._cut(metrics)
    if not self._golds:
      found.pop(_GAP, None)
    for name in self._streaks.keys() - found.keys():
      self._streaks[name] = 0
    self._streaks.update(found.keys())
    ready = {n: t for n, t in found.items() if self._streaks[n] >= PATIENCE}
    if len(self._window) == WINDOW:
      ready |= self._collapse() | self._moved()
    for name, text in ready.items():
      if name not in self._given:
        self._given.add(name)
        warn(step, text)

  def _mean(self, name: str, steps: int = WINDOW) -> float:
    """Averages a metric over the last steps.

    Steps of an older version lack some metrics, which count as 0.
    """
    found = [metrics.get(name, 0.0) for metrics in self._window][-steps:]
    return sum(found) / len(found)

  def _cut(self, metrics: Metrics) -> dict[str, str]:
    """Returns a warning if many completions are cut off, from a few steps."""
    if metrics["length/unfinished"] <= endings.MOST_CUT:
      return {}
    names = ("unfinished", "late_ends", "late_tokens")
    shares = [self._mean(f"length/{name}", PATIENCE) for name in names]
    text = endings.describe_cut(*shares, self._max_tokens)
    text += "; raise rollout.max_tokens"
    if shares[0] <= ALL:
      text += "; select.finished=True leaves cut ones out of the loss"
    return {"cut": text}

  def _collapse(self) -> dict[str, str]:
    """Returns a warning if reasoning got shorter while accuracy fell."""
    accuracy = self._mean("reward/accuracy")
    length = self._mean("length/reasoning")
    self._best = max(self._best, (accuracy, length))
    best_accuracy, best_length = self._best
    if (
        accuracy > best_accuracy - LOST_ACCURACY
        or length > (1 - LOST_LENGTH) * best_length
    ):
      return {}
    text = (
        f"early-exit collapse: over {WINDOW} steps accuracy {accuracy:.2f} and"
        f" {length:.1f} reasoning tokens, after {best_accuracy:.2f} and"
        f" {best_length:.1f}; lower credit.info_weight or the learning rate"
    )
    return {"collapse": text}

  def _moved(self) -> dict[str, str]:
    """Returns a warning if answers grew while reasoning got shorter.

    Compares with the window of the longest reasoning. Answer tokens are per
    completion that ends its reasoning: a policy that only learns to end it
    gives no warning.
    """
    opened = self._mean("length/unfinished")
    opened += self._mean("format/ended_in_reasoning")
    if opened > MOST_OPEN or "length/answer" not in self._window[0]:
      return {}
    reasoning = self._mean("length/reasoning")
    answer = self._mean("length/answer") / (1 - opened)
    self._longest = max(self._longest, (reasoning, answer))
    longest, shorter = self._longest
    lost, gained = longest - reasoning, answer - shorter
    if lost <= MOVED * longest or gained <= MOVED * max(shorter, lost):
      return {}
    text = (
        f"reasoning may be moving into the answer: over {WINDOW} steps"
        f" {reasoning:.1f} reasoning and {answer:.1f} answer tokens, after"
        f" {longest:.1f} and {shorter:.1f}; price both with credit.price=both"
        " (a length penalty, or to_go and chance with credit.cost above 0)"
    )
    return {"moved": text}


def troubles(metrics: Metrics) -> dict[str, str]:
  """Returns the warnings that one step gives, by short names."""
  found = {}
  if metrics["reward/zero_spread_groups"] > ALL:
    found["spread"] = (
        "the rewards within every group are equal: nothing is learned from"
        " them; are the problems too easy, too hard, or graded wrongly?"
    )
  if metrics["reward/accuracy"] == 0:
    found["zero"] = (
        "no completion is correct; can the starting policy solve any of the"
        " problems, and does the grader find its answers?"
    )
  if metrics["reward/timeouts"] > MOST_TIMEOUTS:
    found["timeouts"] = (
        f"{metrics['reward/timeouts']:.0%} of the answers take too long to"
        " compare and count as wrong; read them in samples.jsonl"
    )
  return found | _probe_troubles(metrics) | _update_troubles(metrics)


def _update_troubles(metrics: Metrics) -> dict[str, str]:
  """Returns warnings about policies that should be near each other."""
  found = {}
  gap, ratio = metrics["update/logprob_gap"], metrics["update/ratio"]
  if gap > LARGEST_GAP:
    found["mismatch"] = (
        "sampling and training do not agree about the same policy: a token's"
        f" log-probability differs by {gap:.2f} nats; try model.dtype=float32"
    )
  if not RATIOS[0] <= ratio <= RATIOS[1]:
    found["ratio"] = (
        f"updates move the policy too far: mean ratio {ratio:.2f};"
        " lower optimizer.learning_rate or loss.num_updates"
    )
  if metrics.get("update/kl", 0.0) > LARGEST_KL:
    found["kl"] = (
        "the policy is far from its starting weights:"
        f" {metrics['update/kl']:.2f} nats a token; raise loss.kl_weight, or"
        " lower the learning rate"
    )
  return found


def _probe_troubles(metrics: Metrics) -> dict[str, str]:
  if "probe/entropy_first" not in metrics:  # no probes
    return {}
  found = {}
  moved = metrics["probe/entropy_first"] - metrics["probe/entropy_last"]
  gap = metrics["probe/calibration_gap"]
  if abs(moved) < 0.05:
    found["still"] = (
        f"probes do not move (H_0 − H_R = {moved:.3f} nats): is"
        " probe.elicitation a text that the policy can answer?"
    )
  if abs(gap) > 0.5:
    found[_GAP] = (
        "probes are badly calibrated (gold log-likelihood + entropy ="
        f" {gap:.2f} nats; 0 is calibrated)"
    )
  return found
