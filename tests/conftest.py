"""Eight CPU devices for every test; set before JAX is imported.

The suite compiles some fifty programs and runs each for milliseconds: LLVM's
optimisation is left out, and what one test compiled the next ones read. The
programs themselves are those of a user.
"""

import atexit
import os
import shutil
import tempfile

_FLAGS = (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
)
os.environ["XLA_FLAGS"] = " ".join(_FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"
# Of this process and those it starts: JAX does not lock it.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
atexit.register(
    shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
)
