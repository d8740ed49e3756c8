"""Eight CPU devices for every test; set before JAX is imported.

The suite compiles some fifty programs and runs each for milliseconds: LLVM's
optimisation is left out. The programs themselves are those of a user.
"""

import os

_FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
)
os.environ["XLA_FLAGS"] = " ".join(_FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"
