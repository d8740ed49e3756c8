"""The suite's devices, options and order; see `suite`."""

from suite import *  # noqa: F403
