"""Confidence intervals of means over few replications."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean of `count` values and the ends of its 95 % interval."""

  mean: float
  low: float
  high: float
  count: int


def of_mean(values: Sequence[float]) -> Interval:
  """Returns Student's 95 % interval of a mean.

  mean ± t(n − 1) · s / √n with the standard deviation s of ddof 1. Assumes
  that the values are independent draws of one nearly normal distribution.
  Raises ValueError for fewer than 2 values.
  """
  n = len(values)
  if n < 2:
    raise ValueError(f"{n} values: must be at least 2")
  mean = statistics.mean(values)
  half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
  return Interval(mean, mean - half, mean + half, n)


def of_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """Returns `of_mean` of ours − theirs; the values are paired in order."""
  pairs = zip(ours, theirs, strict=True)
  return of_mean([a - b for a, b in pairs])
