"""Grading of completions, in the compiled step or on decoded text.

`grade` grades texts. Only `host`, `token_match` and `reward` import JAX.
"""

from iapo_jax.rewards.grading import Graded, grade

__all__ = ["Graded", "grade"]
