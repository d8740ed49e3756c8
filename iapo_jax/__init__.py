"""Information-Aware Policy Optimization (arXiv 2602.19049) in JAX."""

__version__ = "0.1.0"
