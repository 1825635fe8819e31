"""The activations a `config.json` can name, by the names transformers gives them.

"gelu" is the exact one, with the error function; the tanh approximation has names of its own.
Confusing the two is the most common bug in ports of BERT.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activation = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` times the normal distribution function
    ([Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415)).
    """
    # With erf, as PyTorch computes it. `jax.nn.gelu` takes erfc, at twice the cost on CPU.
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The tanh approximation of `gelu`, as in Google's first BERT code and in GPT-2."""
    return jax.nn.gelu(x, approximate=True)


def gelu_fast(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`gelu_tanh` with its constant rounded to ten digits, as transformers has it."""
    return 0.5 * x * (1 + jnp.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)))


def gelu_clipped(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`gelu` clipped to [-10, 10], for quantisation ([Wu et
    al.](https://arxiv.org/abs/2004.09602)).
    """
    return jnp.clip(gelu(x), -10, 10)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The sigmoid approximation of `gelu`."""
    return x * jax.nn.sigmoid(1.702 * x)


def mish(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x tanh(softplus(x))` ([Misra](https://arxiv.org/abs/1908.08681))."""
    return x * jnp.tanh(jax.nn.softplus(x))


def laplace(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The normal distribution function that approximates `relu_squared`, of MEGA
    ([Ma et al.](https://arxiv.org/abs/2209.10655)).
    """
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1 + lax.erf((x - mean) / (deviation * math.sqrt(2))))


def relu_squared(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`relu(x)²`, of Primer ([So et al.](https://arxiv.org/abs/2109.08668))."""
    return jnp.square(jax.nn.relu(x))


def sqrt_softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`sqrt(softplus(x))`."""
    return jnp.sqrt(jax.nn.softplus(x))


def linear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` itself."""
    return x


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_10": gelu_clipped,
        "gelu_accurate": gelu_tanh,
        "gelu_fast": gelu_fast,
        "gelu_new": gelu_tanh,
        "gelu_python": gelu,
        "gelu_python_tanh": gelu_tanh,
        "gelu_pytorch_tanh": gelu_tanh,
        "hardswish": jax.nn.hard_swish,
        "laplace": laplace,
        "leaky_relu": jax.nn.leaky_relu,
        "linear": linear,
        "mish": mish,
        "quick_gelu": quick_gelu,
        "relu": jax.nn.relu,
        "relu2": relu_squared,
        "relu6": jax.nn.relu6,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "sqrtsoftplus": sqrt_softplus,
        "swish": jax.nn.silu,
        "tanh": jnp.tanh,
    }
)

_LEARNED = ("prelu", "xielu")


def get_activation(name: str) -> Activation:
    """The activation that transformers knows as `name`.

    **Raises:** `ValueError` for an unknown name, and for the ones that carry trained parameters
    ("prelu", "xielu").
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    known = f"Known are: {', '.join(ACTIVATIONS)}."
    if name in _LEARNED:
        raise ValueError(
            f"The activation {name!r} has parameters of its own, which eqxbert does not read. "
            f"{known}"
        )
    raise ValueError(f"Unknown activation {name!r}. {known}")
