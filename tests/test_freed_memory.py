"""Memory that XLA takes and frees in each layer is not faulted in again each time."""

import os
import platform

import pytest
from helpers import run_python

FAULTS = """
import resource
import statistics

import jax
import jax.numpy as jnp

import eqxbert

x = jnp.ones((1, 512, 12, 32))
attend = jax.jit(lambda x: eqxbert.nn.dot_product_attention(x, x, x)[0])


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    attend(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


# Not all calls: now and then a thread begins with memory of its own.
print(statistics.median(faults() for _ in range(41)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="memory may come from another library")
def test_attention_finds_its_memory_again():
    """The scores alone are 3,072 pages."""
    clean = {name: "" for name in os.environ if name.startswith("MALLOC_")}
    result = run_python(FAULTS, env=clean)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1000
