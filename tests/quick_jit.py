"""Compilation without optimisation, for programs that run once or twice: it takes a quarter of the
time.
"""

from functools import partial

import jax


def _known(options: dict[str, int | bool]) -> dict[str, int | bool]:
    """Those of the compiler's options that this version of it has."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


QUICKLY = _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})
quick_jit = partial(jax.jit, compiler_options=QUICKLY)
