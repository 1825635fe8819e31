"""What was found when a checkpoint was applied to a model."""

import dataclasses
from collections.abc import Mapping


class CheckpointError(ValueError):
    """A checkpoint does not fit the model it was to fill. The message lists every problem."""


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

    not_finite: tuple[str, ...] = ()
    """Names of the model's arrays that hold NaN or infinity, in the dtype that was asked for."""

    def summary(self) -> str:
        """The report in one line."""
        parts = [f"arrays loaded: {len(self.loaded)}"]
        if self.initialized:
            parts.append(f"drawn anew: {len(self.initialized)}")
        if self.unexpected:
            parts.append(f"in the checkpoint, but not used by this model: {len(self.unexpected)}")
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
            ("ignored", self.ignored),
            ("with NaN or infinity", self.not_finite),
        ):
            if names:
                lines += [f"{title}:", *(f"  {self._with_shapes(name)}" for name in names)]
        return "\n".join(lines)

    def _with_shapes(self, name: str) -> str:
        if name not in self.mismatched:
            return name
        found, expected = self.mismatched[name]
        return f"{name} (checkpoint {found}, model {expected})"
