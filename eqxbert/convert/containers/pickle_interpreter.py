"""Pickles without their danger.

A pickle is a program that builds objects, and Python's own reader imports and calls whatever the
program names. This one knows the opcodes and the few names below, and those its caller adds. Names
become markers and are never looked up; calling a marker calls the function that a table gives for
it. The first thing that is not in a table ends the reading.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

# Of a pickle, so that no hostile one takes more than about a second and 100 MiB. A tensor takes
# some 60 steps and 150 bytes.
PICKLE_LIMIT: Final = 8 * 2**20  # bytes
_STEP_LIMIT = 500_000

UNUSED: Final = object()
"""Stands for values that hold no tensors: floats, bytes, sets and the like."""


class RefusedError(ValueError):
    """A file that is whole but asks for what it will not get. The message says what."""


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle names as module and name: nothing but this text."""

    name: str


class OrderedDict(dict):
    """Stands for `collections.OrderedDict`, which may carry attributes; these are left out."""

    __slots__ = ()


def interpret(
    data: bytes,
    position: int,
    calls: Mapping[str, Callable[[tuple], Any] | None],
    load_persistent: Callable[[Any], Any],
) -> tuple[Any, int]:
    """The object that a pickle describes, and the position after it.

    Dictionaries keep only those items that have a text or an integer for a key.

    **Arguments:**

    - `data`: the bytes, of which others may precede and follow the pickle.
    - `position`: where it begins.
    - `calls`: the names that the pickle may use besides Python's harmless ones, and what each does
        with a tuple of arguments; None if it cannot be called.
    - `load_persistent`: gives the object for a persistent id, whatever that may be.

    **Raises:** `RefusedError` if it asks for anything else; `ValueError` if it is not valid.
    """
    machine = _Machine(data, position, calls, load_persistent)
    return machine.run(), machine.position


class _Machine:
    def __init__(
        self,
        data: bytes,
        position: int,
        calls: Mapping[str, Callable[[tuple], Any] | None],
        load_persistent: Callable[[Any], Any],
    ):
        self.data = data
        self.position = position
        self.calls = {**_PYTHON, **calls}
        self.load_persistent = load_persistent
        self.stack: list[Any] = []  # what lies above the last mark
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.steps_left = _STEP_LIMIT

    def run(self) -> Any:
        while True:
            self.spend(1)
            opcode = self.take(1)
            if opcode == pickle.STOP:
                return self.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                raise _unknown(opcode)
            action(self)

    def spend(self, steps: int) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise RefusedError(_too_much(f"{_STEP_LIMIT:,} steps"))

    # The program.

    def take(self, size: int) -> bytes:
        start = self.position
        self.skip(size)
        return self.data[start : self.position]

    def skip(self, size: int) -> None:
        missing = self.position + size - len(self.data)
        if missing > 0 and len(self.data) >= PICKLE_LIMIT:
            raise RefusedError(_too_much(f"{PICKLE_LIMIT:,} bytes"))
        if missing > 0:
            raise ValueError(f"its pickle ends {missing:,} bytes too early")
        self.position += size

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self, size: int) -> str:
        return str(self.take(size), "utf-8")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("its pickle ends within a name")
        return self.text(end - self.position + 1)[:-1]

    def start(self) -> None:
        if (protocol := self.number("B")) > pickle.HIGHEST_PROTOCOL:
            raise ValueError(f"its pickle is of protocol {protocol}, which does not exist")

    def frame(self) -> None:
        if self.number("Q") > len(self.data) - self.position:
            raise ValueError("its pickle has a frame that is longer than the pickle")

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("its pickle takes more from its stack than there is")
        return self.stack[-1]

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            raise ValueError("its pickle returns to a mark that it has not set")
        items, self.stack = self.stack, self.below.pop()
        return items

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"its pickle recalls object {index}, which it has not stored")
        self.push(self.memo[index])

    # Containers.

    def push_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        self._expect(list, "appends to").extend(items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("its pickle has a dictionary with a key and no value")
        _fill(self._expect(dict, "sets items of"), items[::2], items[1::2])

    def add_items(self) -> None:
        self.pop_to_mark()
        if self.top() is not UNUSED:
            raise ValueError(f"its pickle adds members to {_kind(self.top())} instead of set")

    def _expect(self, kind: type, action: str) -> Any:
        if not isinstance(self.top(), kind):
            raise ValueError(f"its pickle {action} {_kind(self.top())} instead of {kind.__name__}")
        return self.top()

    # Names and calls.

    def find_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError(f"its pickle gives {_kind(module)} and {_kind(name)} for a name")
        full_name = f"{_RENAMED.get(module, module)}.{name}"
        if full_name not in self.calls:
            raise RefusedError(_refusal(_shown(f"{module}.{name}")))
        self.push(Global(full_name))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(module, name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"its pickle calls {_kind(function)} with {_kind(arguments)}")
        action = self.calls[function.name]
        if action is None:
            raise ValueError(f"its pickle calls {function.name}, which is not a function")
        # What a call looks at may be small in the pickle, recalled from the memo.
        self.spend(len(arguments))
        self.spend(sum(len(part) for part in arguments if isinstance(part, (list, tuple))))
        self.push(action(arguments))

    def load(self) -> None:
        self.spend(10)
        self.push(self.load_persistent(self.pop()))

    def build(self) -> None:
        self.pop()
        self._expect(OrderedDict, "sets attributes of")


def _refusal(what: str) -> str:
    return (
        f"asks for {what}, which is not among what a checkpoint of tensors needs. eqxbert never "
        "runs code from files. If you trust its author, load it where it was made and save the "
        "model's state_dict(), best as safetensors."
    )


def _too_much(limit: str) -> str:
    return (
        f"has a pickle of more than {limit}, far more than a checkpoint of tensors needs. Load it "
        "where it was made and save the model's state_dict() alone, best as safetensors."
    )


def _shown(text: str) -> str:
    text = text if len(text) <= 100 else text[:100] + "..."
    return text if text.isprintable() else ascii(text)


def _kind(value: Any) -> str:
    if isinstance(value, Global):
        return _shown(value.name)
    return "something unused" if value is UNUSED else type(value).__name__


def _unknown(opcode: bytes) -> ValueError:
    import pickletools  # slow to import, and only here of use

    names = {known.code: known.name for known in pickletools.opcodes}
    name = names.get(opcode.decode("latin-1"))
    if name is None:
        return ValueError(f"its pickle has the byte {opcode.hex()} where an opcode should be")
    return RefusedError(_refusal(f"the pickle opcode {name}"))


def _ordered_dict(arguments: tuple) -> OrderedDict:
    result = OrderedDict()
    match arguments:
        case ():
            return result
        case (list(items),):  # as Python 2 wrote it
            if all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
                _fill(result, [key for key, _ in items], [value for _, value in items])
                return result
    raise ValueError("its pickle makes an OrderedDict of something other than pairs")


def _fill(target: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    # Hashing a tuple takes time exponential in its depth, if its parts are shared, and many long
    # integers can be chosen to have the same hash.
    for key, value in zip(keys, values, strict=True):
        if type(key) is str or (type(key) is int and -(2**63) <= key < 2**63):
            target[key] = value


def _unused(arguments: tuple) -> object:
    return UNUSED


_PYTHON: Mapping[str, Callable[[tuple], Any] | None] = {
    "_codecs.encode": _unused,  # how older protocols write bytes
    "builtins.bytearray": _unused,
    "builtins.complex": _unused,
    "builtins.frozenset": _unused,
    "builtins.set": _unused,
    "collections.Counter": _unused,
    "collections.OrderedDict": _ordered_dict,
}
_RENAMED = {"__builtin__": "builtins"}  # by Python 3

_ACTIONS: dict[bytes, Callable[[_Machine], object]] = {
    pickle.PROTO: _Machine.start,
    pickle.FRAME: _Machine.frame,
    # values
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("i")),
    pickle.BININT1: lambda m: m.push(m.number("B")),
    pickle.BININT2: lambda m: m.push(m.number("H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: (m.skip(8), m.push(UNUSED)),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.text(m.number("B"))),
    pickle.BINUNICODE: lambda m: m.push(m.text(m.number("I"))),
    pickle.BINUNICODE8: lambda m: m.push(m.text(m.number("Q"))),
    pickle.SHORT_BINSTRING: lambda m: m.push(m.text(m.number("B"))),  # Python 2's texts
    pickle.BINSTRING: lambda m: m.push(m.text(m.number("I"))),
    pickle.SHORT_BINBYTES: lambda m: (m.skip(m.number("B")), m.push(UNUSED)),
    pickle.BINBYTES: lambda m: (m.skip(m.number("I")), m.push(UNUSED)),
    pickle.BINBYTES8: lambda m: (m.skip(m.number("Q")), m.push(UNUSED)),
    pickle.BYTEARRAY8: lambda m: (m.skip(m.number("Q")), m.push(UNUSED)),
    # containers
    pickle.MARK: _Machine.mark,
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push_tuple(1),
    pickle.TUPLE2: lambda m: m.push_tuple(2),
    pickle.TUPLE3: lambda m: m.push_tuple(3),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append([m.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.EMPTY_SET: lambda m: m.push(UNUSED),
    pickle.ADDITEMS: _Machine.add_items,
    pickle.FROZENSET: lambda m: (m.pop_to_mark(), m.push(UNUSED)),
    # what is used more than once
    pickle.BINPUT: lambda m: m.memo.__setitem__(m.number("B"), m.top()),
    pickle.LONG_BINPUT: lambda m: m.memo.__setitem__(m.number("I"), m.top()),
    pickle.MEMOIZE: lambda m: m.memo.__setitem__(len(m.memo), m.top()),
    pickle.BINGET: lambda m: m.recall(m.number("B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("I")),
    # names and calls
    pickle.GLOBAL: lambda m: m.find_global(m.line(), m.line()),
    pickle.STACK_GLOBAL: _Machine.stack_global,
    pickle.REDUCE: _Machine.call,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.load,
}
