"""The runs of a comparison of methods, and their order.

Every method has four settings. They are tried from every warm start, with a
seed used for nothing else, and judged on validation problems. The chosen
setting is trained from every warm start with every seed and judged on test
problems.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Fields = Mapping[str, Any]

TUNED = 4  # settings of every method
TUNING_SEED = 100  # never in a final trial


@dataclasses.dataclass(frozen=True)
class Contender:
  """A method that takes part in the comparison.

  Attributes:
    label: shown in tables and figures.
    variant: of the configuration files.
    settings: configuration fields of each setting; all have the same names.
    fixed: fields that all settings share.
    choice: how a setting is chosen: the most `accurate`, or the `shortest` of
      those within a slack of the most accurate plain method.
    setting_of: for an ablation, the contender whose chosen setting it uses; an
      ablation is not tuned.
    early_answers: whether its warm start has examples of early answers.
    beside: for a control or an ablation, the contenders it is compared with.
    misplaced: whether its probes have the wrong positions of `misplaced.py`.
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
  """One run of a contender's setting (an index) from a warm start (a seed)."""

  method: str
  setting: int
  start: int
  seed: int

  @property
  def name(self) -> str:
    """The path of the run's folder."""
    where = f"start-{self.start}/seed-{self.seed}"
    return f"{self.method}/setting-{self.setting}/{where}"


_RATE = "optimizer.learning_rate"
_WEIGHT = "credit.info_weight"
_COST = "credit.cost"


def _settings(name: str, *settings: tuple[float, float]) -> list[Fields]:
  """Makes settings of a learning rate and the value of one more field."""
  return [{_RATE: rate, name: value} for rate, value in settings]


def contenders() -> dict[str, Contender]:
  """Returns all contenders by name; references come before ablations."""
  tuned = _compared() | _with_gold_answers()
  return tuned | _ablations(tuned)


def _compared() -> dict[str, Contender]:
  """Returns the paper's methods, length penalties and controls."""
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
  """Returns methods that credit what tokens do to the gold answer."""
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
  """Returns contenders that change one thing of another contender."""

  def of(name: str, label: str, **changed: Any) -> Contender:
    known = {"label": label, "setting_of": name, "beside": (name,)}
    return dataclasses.replace(tuned[name], **known | changed)

  def never_early(name: str, label: str, *beside: str) -> Contender:
    """Changes the warm start, so only others from it are comparable."""
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
  """Yields the tuning trials: every setting from each warm start.

  Ablations have none.
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
  """Yields starts · seeds trials of the chosen setting of each method.

  The order is replication by replication, so that methods can be compared
  before all trials are done. Ablations come last.
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
  """Averages one method's validation results over warm starts, by setting.

  The means are `accuracy`, `mean_tokens` and, where all results have them, the
  check rates.
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
  """Chooses the setting of a contender and returns its index.

  `results` are those of `means_of_settings`. If no setting is within `slack` of
  `best_accuracy`, that of the best plain method, the most accurate one is
  chosen. Of equal settings the first one is.
  """
  order = range(len(results))
  most_accurate = max(order, key=lambda i: results[i]["accuracy"])
  if contender.choice == "accurate":
    return most_accurate
  fine = [i for i in order if results[i]["accuracy"] >= best_accuracy - slack]
  if not fine:
    return most_accurate
  return min(fine, key=lambda i: results[i]["mean_tokens"])
