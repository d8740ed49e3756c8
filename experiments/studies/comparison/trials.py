"""Which runs a comparison of methods needs, and in which order.

Every method has four settings, tried from every warm start with a seed of
their own and judged on validation problems; the chosen one is trained from
every warm start with every seed and judged on test problems.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Fields = Mapping[str, Any]

TUNED = 4  # settings of every method
TUNING_SEED = 100  # in no final trial


@dataclasses.dataclass(frozen=True)
class Contender:
  """A method that takes part.

  Attributes:
    label: for people.
    variant: of the configuration files.
    settings: fields, one set for each setting; of the same names.
    fixed: fields of all of them.
    choice: how a setting is chosen: the most `accurate`, or the `shortest` of
      those as accurate as the most accurate plain method, but for a slack.
    setting_of: an ablation's: the contender whose chosen setting it has, not
      tuned by itself.
    early_answers: whether its warm start has examples of early answers.
    beside: a control's or an ablation's: the contenders of which it tells what
      their effect is of.
    misplaced: whether its probes are at the positions that the authors'
      published code gives them.
  """

  label: str
  variant: str
  settings: Sequence[Fields]
  fixed: Fields = dataclasses.field(default_factory=dict)
  choice: str = "shortest"
  setting_of: str = ""
  early_answers: bool = True
  beside: Sequence[str] = ()
  misplaced: bool = False


@dataclasses.dataclass(frozen=True)
class Trial:
  """One run.

  Attributes:
    method: name of the contender.
    setting: index of its setting.
    start: seed of the warm start that it begins from.
    seed: of the run.
  """

  method: str
  setting: int
  start: int
  seed: int

  @property
  def name(self) -> str:
    """Of its folder."""
    where = f"start-{self.start}/seed-{self.seed}"
    return f"{self.method}/setting-{self.setting}/{where}"


_RATE = "optimizer.learning_rate"
_WEIGHT = "credit.info_weight"
_COST = "credit.cost"


def _settings(name: str, *settings: tuple[float, float]) -> list[Fields]:
  """A learning rate, and the value of one more field, of each setting."""
  return [{_RATE: rate, name: value} for rate, value in settings]


def contenders() -> dict[str, Contender]:
  """All of them by name, those first that others are compared with."""
  tuned = _compared() | _with_gold_answers()
  return tuned | _ablations(tuned)


def _compared() -> dict[str, Contender]:
  """The methods of the paper, penalties on length, and controls."""
  rates = [{_RATE: rate} for rate in (1e-4, 2e-4, 4e-4, 8e-4)]
  explore = "credit.explore_weight"
  weights = {_WEIGHT: 1.0, explore: 1.0}, {_WEIGHT: 3.0, explore: 0.0}
  paper = [{_RATE: rate} | x for rate in (4e-4, 8e-4) for x in weights]
  return {
      "grpo": Contender("GRPO", "grpo", rates, choice="accurate"),
      "dapo": Contender("DAPO", "dapo", rates, choice="accurate"),
      "length_penalty": Contender(
          "length penalty", "length_penalty",
          _settings(
              "credit.length_weight",
              (2e-4, 1.0), (2e-4, 2.0), (4e-4, 1.0), (4e-4, 2.0),
          ),
      ),
      "to_go": Contender("IAPO to_go", "to_go", _to_go()),
      "paper": Contender("IAPO paper", "paper", paper),
      "cost_only": Contender(
          "cost only (control)", "cost_only",
          _settings(_COST, (4e-4, 0.03), (4e-4, 0.06), (4e-4, 0.1),
                    (4e-4, 0.015)),
          beside=("to_go", "chance"),
      ),
      "shuffled": Contender(
          "to_go, shuffled (control)", "shuffled", _to_go(),
          beside=("to_go",),
      ),
      "group_length_penalty": Contender(
          "length penalty in the group", "group_length_penalty",
          _settings("credit.length_weight", (2e-4, 0.2), (2e-4, 0.5),
                    (4e-4, 0.2), (4e-4, 0.5)),
      ),
  }  # fmt: skip


def _to_go() -> list[Fields]:
  return _settings(
      _WEIGHT, (4e-4, 0.5), (4e-4, 1.0), (8e-4, 0.3), (4e-4, 2.0)
  )


def _with_gold_answers() -> dict[str, Contender]:
  """Credit by what tokens do to the right answer, not to any answer."""
  gold = {"probe.estimator": "gold"}
  return {
      "chance": Contender(
          "chance of the gold answer, priced", "chance",
          _settings(_COST, (4e-4, 0.005), (4e-4, 0.015), (4e-4, 0.01),
                    (4e-4, 0.02)),
      ),
      "to_go_gold": Contender(
          "to_go, gold answer", "to_go",
          _to_go(),
          gold,
      ),
      "gold_everywhere": Contender(
          "gold answer, wrong ones too", "to_go",
          _to_go(),
          gold | {"credit.only_correct": False},
      ),
  }  # fmt: skip


def _ablations(tuned: Mapping[str, Contender]) -> dict[str, Contender]:
  """One thing changed, and another's chosen setting."""

  def of(name: str, label: str, **changed: Any) -> Contender:
    known = {"label": label, "setting_of": name, "beside": (name,)}
    return dataclasses.replace(tuned[name], **known | changed)

  def never_early(name: str, label: str, *beside: str) -> Contender:
    """From a warm start of its own, so beside others from that one only."""
    label = f"{label}, no early answers"
    return of(name, label, early_answers=False, beside=beside or (name,))

  def calibrated(name: str, label: str) -> Contender:
    fixed = {**tuned[name].fixed, "loss.early_weight": 0.1}
    return of(name, f"{label}, probes calibrated", fixed=fixed)

  def discounted(discount: float) -> Contender:
    fixed = {"credit.discount": discount}
    return of("to_go", f"to_go, γ {discount}", fixed=fixed)

  return {
      "discount_80": discounted(0.8),
      "discount_95": discounted(0.95),
      "discount_99": discounted(0.99),
      "price": of(
          "chance", "the price of chance alone",
          fixed={"credit.information": "none", "probe.estimator": "entropy"},
      ),
      "chance_calibrated": calibrated("chance", "chance"),
      "gold_calibrated": calibrated(
          "gold_everywhere", "gold answer, wrong ones too"
      ),
      "misplaced": of("to_go", "to_go, probes misplaced", misplaced=True),
      "paper_misplaced": of(
          "paper", "paper, probes misplaced", misplaced=True
      ),
      "grpo_never_early": never_early("grpo", "GRPO"),
      "penalty_never_early": never_early(
          "length_penalty", "length penalty", "grpo_never_early"
      ),
      "never_early": never_early(
          "to_go", "to_go", "grpo_never_early", "penalty_never_early"
      ),
  }  # fmt: skip


def tuning(methods: Sequence[str], *, starts: int) -> Iterator[Trial]:
  """The trials that settings are chosen by.

  Args:
    methods: names of contenders.
    starts: warm starts.

  Yields:
    Of each but ablations `TUNED` settings from each warm start.
  """
  known = contenders()
  for method in methods:
    if known[method].setting_of:
      continue
    for setting, start in itertools.product(range(TUNED), range(starts)):
      yield Trial(method, setting, start, seed=TUNING_SEED)


def final(
    chosen: Mapping[str, int], *, starts: int, seeds: int
) -> Iterator[Trial]:
  """The trials that methods are compared by.

  Replication by replication, so that they can be compared before all are done;
  ablations after all others.

  Args:
    chosen: the setting of each method.
    starts: warm starts.
    seeds: of runs from each.

  Yields:
    starts · seeds trials of each method.
  """
  known = contenders()
  for ablations in (False, True):
    for seed, start in itertools.product(range(seeds), range(starts)):
      for method, setting in chosen.items():
        if bool(known[method].setting_of) == ablations:
          yield Trial(method, setting, start, seed)


def means_of_settings(
    results: Sequence[Mapping[str, Any]],
) -> list[dict[str, float]]:
  """Validation results of each setting, a mean over warm starts.

  Args:
    results: of one method's settings, from as many starts each.

  Returns:
    `accuracy`, `mean_tokens` and what there is of check rates, by setting.
  """
  settings = sorted({x["setting"] for x in results})
  return [
      {
          name: statistics.mean(
              x[name] for x in results if x["setting"] == setting
          )
          for name in (
              "accuracy", "mean_tokens", "check_after_slip", "check_after_none",
          )
          if all(name in x for x in results)
      }
      for setting in settings
  ]


def choose(
    contender: Contender,
    results: Sequence[Mapping[str, float]],
    best_accuracy: float,
    *,
    slack: float,
) -> int:
  """The setting that a contender is compared with.

  Args:
    contender: whose results these are.
    results: `accuracy` and `mean_tokens` on validation problems, by setting;
      means over warm starts.
    best_accuracy: of the most accurate plain method.
    slack: below it, within which the shortest is chosen.

  Returns:
    The index of the setting. The most accurate one where none is within the
    slack; of equals the first.
  """
  order = range(len(results))
  most_accurate = max(order, key=lambda i: results[i]["accuracy"])
  if contender.choice == "accurate":
    return most_accurate
  fine = [i for i in order if results[i]["accuracy"] >= best_accuracy - slack]
  if not fine:
    return most_accurate
  return min(fine, key=lambda i: results[i]["mean_tokens"])
