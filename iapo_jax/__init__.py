"""Information-Aware Policy Optimization (arXiv 2602.19049) in JAX."""

import os

# Transformers is here for tokenizers and configurations. Without torch it says
# at every start that its models need that, which no user of ours needs to read.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
