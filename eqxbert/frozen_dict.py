"""A dictionary for things that are static in a compiled program."""

import json
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dictionary that cannot be changed and can be hashed, so that a configuration can be static
    in a compiled program.
    """

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(json.dumps(self, sort_keys=True))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("This dictionary belongs to a frozen BertConfig; use config.replace(...).")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)
