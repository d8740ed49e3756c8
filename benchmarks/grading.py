"""How long grading takes: one answer at a time, and a batch at once.

  python benchmarks/grading.py [--answers=1000]

Answers are of the kinds that GSM8K and MATH-500 have (whole numbers, decimals,
fractions, roots, polynomials, intervals, points, matrices, words), each written
in other ways than its gold answer, half of them wrong. `--hostile` adds answers
that a grader could hang on.
"""

import random
import statistics
import time

from absl import app, flags

from iapo_jax.rewards import grade

_ANSWERS = flags.DEFINE_integer("answers", 1000, "How many.", lower_bound=100)
_HOSTILE = flags.DEFINE_integer("hostile", 0, "How many more that are hostile.")

_HOSTILE_ANSWERS = (
    "9**9**9", "10^{10^{10}}", "(" * 900, r"\frac{" * 150, "1" * 1000,
    r"\sum_{n=1}^{99999999} \frac{1}{n^3 + n}", "99999!", "x" * 999,
    r"\int_0^1 x^{x^{x}} dx", "__import__('os').getcwd()",
)  # fmt: skip


def answers(count: int, seed: int = 0) -> list[tuple[str, str]]:
  """(answer, gold answer), every other one wrong."""
  draw = random.Random(seed)
  return [_pair(draw, wrong=i % 2) for i in range(count)]


def _pair(draw: random.Random, wrong: int) -> tuple[str, str]:
  a, b = draw.randint(2, 99), draw.randint(2, 9)
  return draw.choice((
      (f"{a * 37 + wrong:,}", f"{a * 37}"),
      (f"{a * 37 + wrong:,}.00", f"{a * 37}"),
      (f"\\${a + wrong}.50", f"{a}.5"),
      (f"{2 * a + wrong}/{2 * b}", rf"\frac{{{a}}}{{{b}}}"),
      (rf"{b}\sqrt{{{a + wrong}}}", rf"\sqrt{{{b * b * a}}}"),
      (rf"{a}x + {b + wrong}", f"{b} + {a}x"),
      (f"(x+{b})(x+{b + wrong})", f"x^2 + {2 * b}x + {b * b}"),
      (f"({a},{b + wrong}]", rf"\left({a}, {b}\right]"),
      (rf"\left({b + wrong}, {a}\right)", f"({b},{a})"),
      (rf"\begin{{pmatrix}}{a}\\{b + wrong}\end{{pmatrix}}",
       rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}"),
      (rf"{a + wrong} \pi", rf"{a}\pi"),
      ("Ada" if wrong else "Eve", r"\text{Eve}"),
  ))  # fmt: skip


def main(_: list[str]) -> None:
  """Times and prints."""
  pairs = answers(_ANSWERS.value)
  texts = [f"so</think>\n<answer>{answer}</answer>" for answer, _ in pairs]
  golds = [gold for _, gold in pairs]
  grade(texts[:20] * 2, golds[:20] * 2)  # starts the processes
  seconds = []
  for text, gold in zip(texts, golds, strict=True):
    start = time.perf_counter()
    grade([text], [gold])
    seconds.append(time.perf_counter() - start)
  cuts = statistics.quantiles(seconds, n=100)
  print(
      f"one at a time: p50 {1e3 * cuts[49]:.2f} ms, p99 {1e3 * cuts[98]:.2f}"
      f" ms, longest {1e3 * max(seconds):.1f} ms"
  )
  # Of another seed: processes remember what they have read.
  pairs = answers(_ANSWERS.value, seed=1)
  pairs += [
      (_HOSTILE_ANSWERS[i % len(_HOSTILE_ANSWERS)], f"{i}")
      for i in range(_HOSTILE.value)
  ]
  texts = [f"so</think>\n<answer>{answer}</answer>" for answer, _ in pairs]
  start = time.perf_counter()
  results = grade(texts, [gold for _, gold in pairs])
  spent = time.perf_counter() - start
  right = sum(result.correct for result in results)
  late = sum(result.timed_out for result in results)
  print(
      f"{len(pairs)} at once: {spent:.2f} s, {right} right, {late} given up"
  )


if __name__ == "__main__":
  app.run(main)
