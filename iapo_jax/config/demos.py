"""What `iapo demo` shows of a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from iapo_jax.config import presets
from iapo_jax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Demo:
  """The demo of a configuration whose variants are `sft` and methods.

  A configuration file has one under the name `DEMO`.

  Attributes:
    title: of the page.
    methods: trained if the user names none.
    minutes: of the warm start and of the run of a method on two CPU cores,
      evaluation included; for an announcement, no limit.
    small: fields that make its runs tiny, to see that all parts work.
    timed_problems: test problems on which policies are timed side by side; 0
      leaves that out.
    grpo_rates: GRPO's learning rates for `--tune_grpo`.
  """

  title: str
  methods: tuple[str, ...]
  minutes: tuple[float, float]
  small: Mapping[str, Any]
  timed_problems: int = 0
  grpo_rates: tuple[float, ...] = ()

  def shrink(self, config: ml_collections.ConfigDict) -> None:
    """Makes a run tiny; a stage that it leaves out stays out."""
    stages = {
        "num_steps": config.num_steps,
        "warm_start.num_steps": config.warm_start.num_steps,
    }
    config.update_from_flattened_dict({
        field: min(value, stages.get(field, value))
        for field, value in self.small.items()
    })


def read(name: str) -> Demo:
  """Returns the demo of a configuration, one of `presets.names()`.

  Raises:
    ConfigError: if there is none.
  """
  known = {}
  for other in presets.names():
    found = presets.read(other).get("DEMO")
    known |= {other: found} if found else {}
  if name not in known:
    rule = f"must be one of {', '.join(known)}, which have a demo"
    raise ConfigError(f"--config = {name!r}: {rule}")
  return known[name]
