"""Grading of completions: in the compiled program, or on decoded text.

`grade` grades texts. Nothing here imports JAX but the graders of the compiled
step (`host`, `token_match`) and `reward`.
"""

from iapo_jax.rewards.grading import Graded, grade

__all__ = ["Graded", "grade"]
