"""Shows how much each token of existing reasoning reveals about the answer.

The same as `iapo score`.
"""

from iapo_jax.cli import iapo

if __name__ == "__main__":
  iapo.run("score")
