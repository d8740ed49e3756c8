"""The credit modes: one entry for each function of `rl.credits`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class CreditMode:
  """What a credit mode reads, and which configurations fit it.

  Attributes:
    doc: what it credits, in a few words.
    reads_information: needs probes.
    at_every_token: its formula needs exact probes after every token.
    takes_controls: `credit.information` may replace what it reads.
    gates: `credit.only_correct` may be false.
    whole_groups: compares all members of a group with each other.
    normalises: whether `credit.normalise` may be true.
  """

  doc: str
  reads_information: bool = False
  at_every_token: bool = False
  takes_controls: bool = False
  gates: bool = False
  whole_groups: bool = False
  normalises: bool = True


CREDITS = {
    "grpo": CreditMode("the group advantage alone"),
    "gtpo": CreditMode("the policy's entropy", whole_groups=True),
    "length_penalty": CreditMode(
        "a length penalty in the reward (control)", normalises=False
    ),
    "group_length_penalty": CreditMode(
        "a length penalty in the advantage (control)", whole_groups=True
    ),
    "paper": CreditMode(
        "the paper's formula", reads_information=True, takes_controls=True
    ),
    "to_go": CreditMode(
        "discounted information to go",
        reads_information=True,
        takes_controls=True,
        gates=True,
    ),
    "faithful": CreditMode(
        "the authors' code with exact probes",
        reads_information=True,
        at_every_token=True,
    ),
}
