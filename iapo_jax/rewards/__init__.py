"""Grades completions, in the compiled step or as decoded text.

`grade` grades texts. Only `host`, `token_match` and `reward` import JAX.
"""

from iapo_jax.rewards.grading import Graded, grade

__all__ = ["Graded", "grade"]
