"""What was found when a checkpoint was applied to a model."""

import dataclasses
from collections.abc import Mapping


class CheckpointError(ValueError):
    """A checkpoint does not fit the model it was to fill. The message lists every problem."""


# Of each kind, the names that are printed; optimizers leave hundreds to ignore.
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The fate of every name in a checkpoint and of every array in the model."""

    loaded: Mapping[str, str]
    """Name in the checkpoint -> name in the model, for the arrays that were filled."""
    initialized: tuple[str, ...]
    """Names of the model's arrays that the checkpoint did not fill: they were drawn anew."""
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Name -> (shape in the checkpoint, shape in the model), among those drawn anew."""
    unexpected: tuple[str, ...]
    """Names in the checkpoint that have no place in the model; their arrays were left unread."""
    ignored: tuple[str, ...]
    """Names of buffers and of leftovers from training, which hold nothing of a model."""

    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the checkpoint -> name in the model of the array that it repeats, since the two are
    tied: the decoder's, which is that of the word embeddings.
    """
    overridden: tuple[str, ...] = ()
    """Names among `tied` whose values differed; they were not used."""
    not_finite: tuple[str, ...] = ()
    """Names of the model's arrays that hold NaN or infinity, in the dtype that was asked for."""

    def summary(self) -> str:
        """The report in one line."""
        parts = [f"arrays loaded: {len(self.loaded)}"]
        if self.initialized:
            parts.append(f"drawn anew: {len(self.initialized)}")
        if self.unexpected:
            parts.append(f"in the checkpoint, but not used by this model: {len(self.unexpected)}")
        if self.tied:
            parts.append(f"tied to others: {len(self.tied)}")
        if self.overridden:
            parts.append(f"of these, not equal and not used: {len(self.overridden)}")
        if self.ignored:
            parts.append(f"buffers ignored: {len(self.ignored)}")
        if self.not_finite:
            parts.append(f"with NaN or infinity: {len(self.not_finite)}")
        return ", ".join(parts)

    def __str__(self) -> str:
        lines = [self.summary()]
        for title, names in (
            ("drawn anew", self.initialized),
            ("not used by this model", self.unexpected),
            ("tied to others", tuple(self.tied)),
            ("not equal to what they are tied to, and not used", self.overridden),
            ("ignored", self.ignored),
            ("with NaN or infinity", self.not_finite),
        ):
            if names:
                lines += [f"{title}:", *(f"  {self._with_shapes(name)}" for name in names[:_SHOWN])]
            if len(names) > _SHOWN:
                lines.append(f"  ... and {len(names) - _SHOWN} more")
        return "\n".join(lines)

    def _with_shapes(self, name: str) -> str:
        if name not in self.mismatched:
            return name
        found, expected = self.mismatched[name]
        return f"{name} (checkpoint {found}, model {expected})"
