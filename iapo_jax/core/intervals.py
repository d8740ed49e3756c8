"""Intervals of means over few paired replications, and Pareto fronts."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean and its 95 % interval.

  Attributes:
    mean: of the values.
    low: the lower end.
    high: the upper end.
    count: of the values.
  """

  mean: float
  low: float
  high: float
  count: int


def of_mean(values: Sequence[float]) -> Interval:
  """Student's 95 % interval of a mean.

  mean ± t(n − 1) · s / √n with the standard deviation s of ddof 1. It takes
  the values for independent draws of one nearly normal distribution.

  Args:
    values: at least 2.

  Returns:
    The interval.

  Raises:
    ValueError: for fewer values.
  """
  n = len(values)
  if n < 2:
    raise ValueError(f"{n} values: must be at least 2")
  mean = statistics.mean(values)
  half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
  return Interval(mean, mean - half, mean + half, n)


def of_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """`of_mean` of ours − theirs, pair by pair.

  Args:
    ours: of replications.
    theirs: of the same replications, in the same order.

  Returns:
    The interval.
  """
  pairs = zip(ours, theirs, strict=True)
  return of_mean([a - b for a, b in pairs])


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
  """Which (accuracy, tokens) no other point beats in one and matches in both.

  Args:
    points: accuracy, the more the better; tokens, the fewer the better.

  Returns:
    Indices in their order.
  """

  def beaten(i: int) -> bool:
    accuracy, tokens = points[i]
    return any(
        a >= accuracy and t <= tokens and (a, t) != (accuracy, tokens)
        for a, t in points
    )

  return [i for i in range(len(points)) if not beaten(i)]
