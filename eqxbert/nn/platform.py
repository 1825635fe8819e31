"""Where programs run."""

from typing import Any

import jax


def platform() -> str:
    """What is computed on, unless arrays are put elsewhere: "cpu", "gpu" or "tpu"; the device that
    `jax.default_device` says, or else JAX's default backend.
    """
    config: Any = jax.config
    device = config.jax_default_device
    if device is None:
        return jax.default_backend()
    return (jax.devices(device)[0] if isinstance(device, str) else device).platform
