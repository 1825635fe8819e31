"""The activations a `config.json` can name, by the names transformers gives them.

"gelu" is the exact one, with the error function; the tanh approximation has names of its own.
Confusing the two is the most common bug in ports of BERT.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .numerics import accumulation_dtype

Function = Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]


@jax.custom_jvp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` times the normal distribution function
    ([Hendrycks & Gimpel, 2016](https://arxiv.org/abs/1606.08415)).
    """
    # With erf, as PyTorch computes it. `jax.nn.gelu` takes erfc, at twice the cost on CPU.
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


# Of the derivative, one array is kept for gradients; of what JAX would make of the above, three.
@gelu.defjvp
def _gelu_jvp(
    primals: tuple[Float[Array, "*shape"]], tangents: tuple[Float[Array, "*shape"]]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    (x,), (tangent,) = primals, tangents
    distribution = 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return gelu(x), (distribution + x * density) * tangent


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


ACTIVATIONS: Mapping[str, Function] = MappingProxyType(
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


def get_activation(name: str) -> Function:
    """The function that transformers knows as `name`.

    **Raises:** `ValueError` for an unknown name, and for the ones that have trained parameters,
    which only an `Activation` has a place for.
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if name in _TRAINED:
        raise ValueError(
            f"The activation {name!r} has trained parameters; it needs an eqxbert.nn.Activation."
        )
    known = ", ".join([*ACTIVATIONS, *_TRAINED])
    raise ValueError(f"Unknown activation {name!r}. Known are: {known}.")


def prelu(x: Float[Array, "*shape"], *, weight: Float[Array, " one"]) -> Float[Array, "*shape"]:
    """`x` where positive, `weight * x` elsewhere ([He et
    al., 2015](https://arxiv.org/abs/1502.01852)).
    """
    return jnp.where(x > 0, x, weight[0] * x)


def xielu(
    x: Float[Array, "*shape"], *, alpha_p: Float[Array, " one"], alpha_n: Float[Array, " one"]
) -> Float[Array, "*shape"]:
    """A quadratic where positive, an exponential elsewhere, with trained curvatures ([Huang &
    Schlag, 2024](https://arxiv.org/abs/2411.13010)).
    """
    positive = jax.nn.softplus(alpha_p[0]) * x * x
    # The derivative of the exponential's side is taken short of 0, where it belongs to the other.
    negative = (_XIELU_SLOPE + jax.nn.softplus(alpha_n[0])) * (jnp.expm1(jnp.minimum(x, -1e-6)) - x)
    return jnp.where(x > 0, positive, negative) + _XIELU_SLOPE * x


_XIELU_SLOPE = 0.5

# The functions with trained parameters, each with what these are at first.
_TRAINED: Mapping[str, tuple[Callable[..., Float[Array, "*shape"]], Mapping[str, float]]] = {
    "prelu": (prelu, {"weight": 0.25}),
    "xielu": (
        xielu,
        {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.8 - _XIELU_SLOPE))},
    ),
}


class Activation(eqx.Module):
    """The activation that transformers knows as `name`, with its parameters if it has any."""

    name: str = eqx.field(static=True)
    parameters: dict[str, Float[Array, " one"]]

    def __init__(self, name: str):
        """**Raises:** `ValueError` for an unknown name."""
        self.name = name
        initial = _TRAINED[name][1] if name in _TRAINED else {}
        self.parameters = {key: jnp.asarray([x], jnp.float32) for key, x in initial.items()}
        if not initial:
            get_activation(name)  # an unknown name is better refused here than when called

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Computes in at least float32: in bfloat16, `1 + erf(x)` loses its digits where erf(x) is
        near -1.
        """
        dtype = accumulation_dtype(x)
        parameters = {key: value.astype(dtype) for key, value in self.parameters.items()}
        function = _TRAINED[self.name][0] if parameters else get_activation(self.name)
        return function(x.astype(dtype), **parameters).astype(x.dtype)
