"""What the models return: modules with named, typed fields."""

import equinox as eqx
from jaxtyping import Array, Float


class ModelOutput(eqx.Module):
    """A result with named fields, those not asked for being None.

    Fields are read by name (`out.pooler_output`, `out["pooler_output"]`) or, as in transformers, by
    their place among those that are not None (`out[0]`, `out[:2]`).
    """

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order."""
        values = (getattr(self, name) for name in type(self).__dataclass_fields__)
        return tuple(value for value in values if value is not None)

    def keys(self) -> tuple[str, ...]:
        """The names of the fields that are not None, in order."""
        names = type(self).__dataclass_fields__
        return tuple(name for name in names if getattr(self, name) is not None)

    def __iter__(self):
        """Over the values, as of a tuple: `states, pooled = model(ids)`."""
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: str) -> bool:
        """Whether a field was asked for."""
        return name in self.keys()

    def __getitem__(self, index: int | slice | str):
        if not isinstance(index, str):
            return self.to_tuple()[index]
        if index in type(self).__dataclass_fields__:
            return getattr(self, index)
        raise KeyError(f"{index!r}; the fields are {', '.join(type(self).__dataclass_fields__)}")


class EncoderOutput(ModelOutput):
    """What the stack of layers returns.

    - `hidden_states`: the input of the first layer and the output of each.
    - `attentions`: each layer's attention weights, as they were applied.
    """

    last_hidden_state: Float[Array, "*batch seq hidden"]
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch heads seq seq"], ...] | None = None


class BertModelOutput(ModelOutput):
    """What `BertModel` returns.

    - `last_hidden_state`: one vector for each token.
    - `pooler_output`: one vector for each sequence, if the model has a pooler.
    - `hidden_states`: the embeddings and the output of each layer, if asked for.
    - `attentions`: each layer's attention weights, as they were applied, if asked for.
    """

    last_hidden_state: Float[Array, "*batch seq hidden"]
    pooler_output: Float[Array, "*batch hidden"] | None = None
    hidden_states: tuple[Float[Array, "*batch seq hidden"], ...] | None = None
    attentions: tuple[Float[Array, "*batch heads seq seq"], ...] | None = None
