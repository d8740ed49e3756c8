"""Eight CPU devices for every test; set before JAX is imported."""

import os

_DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"
