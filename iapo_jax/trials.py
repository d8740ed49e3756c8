"""Which runs a comparison of methods needs, and in which order.

Every method has four settings, tried on one warm start and judged on
validation problems; the chosen one is trained from every warm start with every
seed and judged on test problems.
"""

import dataclasses
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
      those as accurate as the most accurate plain method, but for a point.
    setting_of: an ablation's: the contender whose chosen setting it has, not
      tuned by itself.
    early_answers: whether its warm start has examples of early answers.
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


def _settings(*fields: Fields) -> list[Fields]:
  """Each of two sets of fields at two learning rates."""
  return [{_RATE: rate} | dict(x) for rate in (4e-4, 8e-4) for x in fields]


def contenders() -> dict[str, Contender]:
  """All of them by name, those first that others are compared with."""
  return _compared() | _with_gold_answers() | _ablations()


def _compared() -> dict[str, Contender]:
  """The methods of the paper, penalties on length, and controls."""
  rates = [{_RATE: rate} for rate in (2e-4, 4e-4, 8e-4, 1.6e-3)]
  length = "credit.length_weight"
  return {
      "grpo": Contender("GRPO", "grpo", rates, choice="accurate"),
      "dapo": Contender("DAPO", "dapo", rates, choice="accurate"),
      "length_penalty": Contender(
          "length penalty", "length_penalty",
          _settings({length: 1.0}, {length: 3.0}),
      ),
      "to_go": Contender("IAPO to_go", "to_go", _to_go()),
      "paper": Contender("IAPO paper", "paper", _paper()),
      "cost_only": Contender(
          "cost only (control)", "cost_only",
          _settings({"credit.cost": 0.03}, {"credit.cost": 0.1}),
      ),
      "shuffled": Contender("to_go, shuffled (control)", "shuffled", _to_go()),
      "group_length_penalty": Contender(
          "length penalty in the group", "group_length_penalty",
          _settings({length: 0.2}, {length: 0.5}),
      ),
  }  # fmt: skip


def _to_go() -> list[Fields]:
  return _settings({_WEIGHT: 0.25}, {_WEIGHT: 0.5})


def _paper() -> list[Fields]:
  explore = "credit.explore_weight"
  return _settings({_WEIGHT: 1.0, explore: 1.0}, {_WEIGHT: 3.0, explore: 0.0})


def _with_gold_answers() -> dict[str, Contender]:
  """Credit by what tokens do to the right answer, not to any answer."""
  settings = _settings({_WEIGHT: 0.5}, {_WEIGHT: 1.0})
  gold = {"probe.estimator": "gold"}
  everywhere = gold | {"credit.only_correct": False}
  calibrated = {"loss.early_weight": 0.1}
  chance = {
      "probe.estimator": "gold_chance",
      "credit.only_correct": False,
      "credit.discount": 1.0,
  }
  priced = [
      {_RATE: 8e-4, _WEIGHT: 2.0, "credit.cost": cost}
      for cost in (0.0025, 0.005, 0.01, 0.02)
  ]
  return {
      "to_go_gold": Contender("to_go, gold answer", "to_go", settings, gold),
      "gold_everywhere": Contender(
          "gold answer, wrong ones too", "to_go", settings, everywhere
      ),
      "gold_calibrated": Contender(
          "gold answer, wrong ones too, probes calibrated", "to_go", settings,
          everywhere | calibrated,
      ),
      "chance": Contender(
          "chance of the gold answer, priced", "to_go", priced, chance
      ),
      "chance_calibrated": Contender(
          "chance of the gold answer, priced, probes calibrated", "to_go",
          priced, chance | calibrated,
      ),
  }  # fmt: skip


def _ablations() -> dict[str, Contender]:
  """Other probes or another warm start, and another's chosen setting."""
  return {
      "never_early": Contender(
          "to_go, warm start without early answers", "to_go", _to_go(),
          setting_of="to_go", early_answers=False,
      ),
      "misplaced": Contender(
          "to_go, probes misplaced", "to_go", _to_go(), setting_of="to_go",
          misplaced=True,
      ),
      "paper_misplaced": Contender(
          "paper, probes misplaced", "paper", _paper(), setting_of="paper",
          misplaced=True,
      ),
  }  # fmt: skip


def tuning(methods: Sequence[str]) -> Iterator[Trial]:
  """The trials that settings are chosen by.

  Args:
    methods: names of contenders.

  Yields:
    `TUNED` trials of each but of ablations.
  """
  known = contenders()
  for method in methods:
    if known[method].setting_of:
      continue
    for setting in range(TUNED):
      yield Trial(method, setting, start=0, seed=TUNING_SEED)


def final(
    chosen: Mapping[str, int], *, starts: int, seeds: int
) -> Iterator[Trial]:
  """The trials that methods are compared by, replication by replication.

  Args:
    chosen: the setting of each method.
    starts: warm starts.
    seeds: of runs from each.

  Yields:
    starts · seeds trials of each method.
  """
  for seed in range(seeds):
    for start in range(starts):
      for method, setting in chosen.items():
        yield Trial(method, setting, start, seed)


def choose(
    contender: Contender,
    results: Sequence[Mapping[str, float]],
    best_accuracy: float,
    *,
    slack: float = 0.01,
) -> int:
  """The setting that a contender is compared with.

  Args:
    contender: whose results these are.
    results: `accuracy` and `mean_tokens` on validation problems, by setting.
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
