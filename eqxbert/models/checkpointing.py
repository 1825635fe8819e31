"""Gradient checkpointing: layers that are computed again for their gradients."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..nn import Attention
from .encoder import EncoderLayer, LayerOutput

Policy = Callable[..., bool]
"""What is kept all the same: one of `jax.checkpoint_policies`."""


class CheckpointedLayer(eqx.Module):
    """A layer of which no more than its input is kept for the gradients, and what `policy` says
    ([Chen et al., 2016](https://arxiv.org/abs/1604.06174)).
    """

    layer: EncoderLayer
    policy: Policy | None = eqx.field(static=True)

    @property
    def cross_attention(self) -> Attention | None:
        return self.layer.cross_attention

    @property
    def heads(self) -> tuple[int, ...]:
        return self.layer.heads

    def __call__(self, *arguments: Any, **options: Any) -> LayerOutput:
        return eqx.filter_checkpoint(self.layer, policy=self.policy)(*arguments, **options)


def checkpoint_layers(model: PyTree, policy: Policy | None = None) -> PyTree:
    """The model with each layer checkpointed: what it computes is the same, in less memory and more
    time. For use inside of a function that is differentiated; the model itself keeps its names.
    """

    def is_layer(node: Any) -> bool:
        return isinstance(node, EncoderLayer)

    return jax.tree.map(
        lambda node: CheckpointedLayer(node, policy) if is_layer(node) else node,
        model,
        is_leaf=is_layer,
    )
