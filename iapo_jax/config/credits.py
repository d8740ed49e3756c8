"""The credit modes; `rl.credits` has one function for each."""

import dataclasses

# The tokens that a length penalty or token cost counts. `both` are all of them:
# only there the EOS counts, which belongs to neither part.
PRICES = ("reasoning", "answer", "both")


@dataclasses.dataclass(frozen=True)
class CreditMode:
  """The description of a credit mode, and the configurations that fit it.

  Attributes:
    doc: the credited quantity, in a few words.
    weights: the numbers of `CreditConfig` that it uses, for the printed plan.
    reads_information: whether it needs probes.
    at_every_token: whether it needs exact probes after every token, including
      `</think>` and the answer.
    takes_controls: whether `credit.information` may replace the information.
    gates: whether `credit.only_correct` may be false.
    whole_groups: whether it compares all members of a group; then
      `select.shortest` must be 0.
    penalises_rewards: whether it subtracts the length penalty from the rewards
      before they are compared; then `credit.normalise` must be false.
    prices: the tokens that its length penalty or token cost counts under
      `credit.price=auto`, one of `PRICES`; empty if it has neither.
  """

  doc: str
  weights: tuple[str, ...] = ()
  reads_information: bool = False
  at_every_token: bool = False
  takes_controls: bool = False
  gates: bool = False
  whole_groups: bool = False
  penalises_rewards: bool = False
  prices: str = ""


CREDITS = {
    "grpo": CreditMode("the group advantage alone"),
    "gtpo": CreditMode(
        "the policy's entropy", weights=("explore_weight",), whole_groups=True
    ),
    "length_penalty": CreditMode(
        "a length penalty in the reward (control)",
        weights=("length_weight",),
        penalises_rewards=True,
        prices="both",
    ),
    "group_length_penalty": CreditMode(
        "a length penalty in the advantage (control)",
        weights=("length_weight",),
        whole_groups=True,
        prices="both",
    ),
    "paper": CreditMode(
        "the paper's formula",
        weights=("info_weight", "explore_weight"),
        reads_information=True,
        takes_controls=True,
    ),
    "to_go": CreditMode(
        "discounted information to go",
        weights=("info_weight", "explore_weight", "discount", "cost"),
        reads_information=True,
        takes_controls=True,
        gates=True,
        prices="reasoning",
    ),
    "faithful": CreditMode(
        "the authors' code with exact probes",
        weights=("info_weight", "explore_weight", "horizon"),
        reads_information=True,
        at_every_token=True,
    ),
}
