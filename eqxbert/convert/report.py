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

    def summary(self) -> str:
        """The report in one line."""
        parts = [f"{len(self.loaded)} arrays loaded"]
        if self.initialized:
            parts.append(f"{len(self.initialized)} drawn anew")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} in the checkpoint not used by this model")
        if self.ignored:
            parts.append(f"{len(self.ignored)} buffers ignored")
        return ", ".join(parts)

    def __str__(self) -> str:
        lines = [self.summary()]
        for title, names in (
            ("drawn anew", self.initialized),
            ("not used by this model", self.unexpected),
            ("ignored", self.ignored),
        ):
            if names:
                lines += [f"{title}:", *(f"  {self._with_shapes(name)}" for name in names)]
        return "\n".join(lines)

    def _with_shapes(self, name: str) -> str:
        if name not in self.mismatched:
            return name
        found, expected = self.mismatched[name]
        return f"{name} (checkpoint {found}, model {expected})"
