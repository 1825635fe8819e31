"""Pickles that ask for anything but tensors, or for too much."""

import os
import pickle
import struct
import subprocess
from pathlib import Path
from typing import Any

from convert.containers.torch_files import (
    Code,
    call,
    code,
    named,
    persistent,
    program,
    recalled,
    stack_named,
    storage,
    stored,
    tensor,
)

# Pickles that ask for what they will not get.


def exploits(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file `canary` if Python reads them."""
    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    pickles = {}
    for protocol in (2, 4):
        for name, function, argument in (
            ("os.system", os.system, touch),
            ("eval", eval, python),
            ("exec", exec, python),
            ("subprocess.Popen", subprocess.check_call, ["touch", str(canary)]),
        ):
            pickled = pickle.dumps({"a": _Call(function, argument)}, protocol)
            pickles[f"{name}, protocol {protocol}"] = (pickled, f"{function.__name__}, which is")
    system = call("builtins.getattr", call("builtins.__import__", "os"), "system")
    by_parts = Code(stack_named("posix", "system") + code((touch,)) + pickle.REDUCE)
    old = pickle.INST + b"posix\nsystem\n"
    pickles |= {
        "getattr chain": (
            program(Code(system + code((touch,)) + pickle.REDUCE)),
            "asks for builtins.getattr",
        ),
        "STACK_GLOBAL": (program(by_parts), "asks for posix.system"),
        "in a list of a dict": (program({"a": [1, {"b": by_parts}]}), "asks for posix.system"),
        "as a key": (program(Code(pickle.EMPTY_DICT + by_parts + b"Ns")), "asks for posix.system"),
        "as a storage": (program(tensor(by_parts)), "asks for posix.system"),
        "as hooks": (
            program(call("torch._utils._rebuild_parameter", tensor(), True, by_parts)),
            "asks for posix.system",
        ),
        "as attributes": (
            program(Code(call("collections.OrderedDict") + code({"_metadata": by_parts}) + b"b")),
            "asks for posix.system",
        ),
        "INST": (program(Code(pickle.MARK + code(touch) + old)), "asks for the pickle opcode INST"),
        "OBJ": (
            program(Code(pickle.MARK + named("posix.system") + code(touch) + pickle.OBJ)),
            "asks for posix.system",
        ),
    }
    return pickles


class _Call:
    def __init__(self, function: Any, argument: Any):
        self.reduced = (function, (argument,))

    def __reduce__(self) -> tuple[Any, tuple]:
        return self.reduced


_NAMES = [
    *("os.system", "nt.system", "builtins.__import__", "__builtin__.eval", "builtins.dict"),
    *("builtins.list", "builtins.object", "builtins.type", "builtins.print", "sys.exit"),
    *("importlib.import_module", "runpy.run_path", "runpy._run_code", "shutil.rmtree"),
    *("pickle.loads", "marshal.loads", "types.CodeType", "types.FunctionType", "pathlib.Path"),
    *("functools.partial", "operator.attrgetter", "copyreg._reconstructor", "copyreg.__newobj__"),
    *("collections.defaultdict", "argparse.Namespace", "datetime.datetime", "numpy.dtype"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy.load"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.classes.load_library"),
    *("torch.storage._load_from_bytes", "torch.serialization._get_layout", "torch.FloatTensor"),
    *("torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor"),
    *("torch._utils._rebuild_wrapper_subclass", "torch._utils._import_dotted_name"),
    *("torch.QInt8Storage", "torch.qint8", "torch.complex32", "torch.nn.modules.linear.Linear"),
    *("transformers.training_args.TrainingArguments", "canary_module.sing"),
    # what resembles the names that are known
    *("collections.OrderedDict.update", "torch.FloatStorage.__class__", "torch._utils", "torch"),
    *("", ".", "OrderedDict", "torch.Size ", "torch.size", "torch.float", "builtins.bytes"),
]


def refused() -> dict[str, tuple[bytes, str]]:
    pickles = {}
    for name in _NAMES:
        shown = name if "." in name else f".{name}"
        pickles[f"calls {name!r}"] = (program({"a": call(name, "x")}), f"asks for {shown}, which")
    no_call = program({"a": named("canary_module.sing")})
    pickles["only names"] = (no_call, "asks for canary_module.sing, which")
    long, control = program(stack_named("a" * 10**6, "b")), program(stack_named("\x1b[2J", "b"))
    pickles["a name too long"] = (long, f"asks for {'a' * 100}..., which")
    pickles["a name that controls the terminal"] = (control, r"asks for '\x1b[2J.b', which")

    ordered = named("collections.OrderedDict") + code(())
    opcodes = {
        "NEWOBJ": ordered,
        "NEWOBJ_EX": ordered + code({}),
        "EXT1": b"\1",
        "EXT2": b"\1\0",
        "EXT4": b"\1\0\0\0",
        "PERSID": b"1\n",
        "DUP": b"",
        "POP": b"",
        "POP_MARK": b"",
        "INT": b"1\n",
        "LONG": b"1L\n",
        "LONG4": struct.pack("<i", 2**31 - 1),
        "FLOAT": b"1\n",
        "STRING": b"'a'\n",
        "UNICODE": b"a\n",
        "GET": b"0\n",
        "PUT": b"0\n",
        "LIST": b"",
        "DICT": b"",
        "NEXT_BUFFER": b"",
        "READONLY_BUFFER": b"",
    }
    for name, rest in opcodes.items():
        before, after = (rest, b"") if name.startswith("NEWOBJ") else (b"", rest)
        pickled = program(Code(before + getattr(pickle, name) + after))
        pickles[f"opcode {name}"] = (pickled, f"asks for the pickle opcode {name}, which is not")
    return pickles


# Pickles that are not valid.


def invalid() -> dict[str, tuple[bytes, str]]:
    rows = {**_wrong_opcodes(), **_wrong_storages(), **_wrong_tensors()}
    return {name: (program(value), message) for name, (value, message) in rows.items()}


def _wrong_opcodes() -> dict[str, tuple[Any, str]]:
    one = code(1)
    return {
        # announcing more than there is
        "BINBYTES": (Code(b"B" + b"\xff" * 4), "pickle ends 4,294,967,"),
        "BINBYTES8": (
            Code(pickle.BINBYTES8 + struct.pack("<Q", 2**62)),
            "ends 4,611,686,018,427,3",
        ),
        "BYTEARRAY8": (Code(pickle.BYTEARRAY8 + b"\xff" * 8), "pickle ends 18,446,744,073,709,5"),
        "BINUNICODE": (Code(b"X" + b"\xff" * 4), "pickle ends 4,294,967,"),
        "BINUNICODE8": (Code(pickle.BINUNICODE8 + b"\xff" * 8), "ends 18,446,744,073,709,5"),
        "BINSTRING": (Code(b"T" + b"\xff" * 4), "pickle ends 4,294,967,"),
        "FRAME": (Code(pickle.FRAME + b"\xff" * 8), "frame that is longer than the pickle"),
        "LONG1": (Code(pickle.LONG1 + b"\xff"), "too early"),
        "GLOBAL": (Code(b"cos" + b"x" * 99), "ends within a name"),
        # stack and memo
        "nothing": (Code(), "takes more from its stack than there is"),
        "TUPLE2": (Code(b"N" + pickle.TUPLE2), "takes more from its stack"),
        "REDUCE of nothing": (Code(b"R"), "takes more from its stack"),
        "BINPERSID of nothing": (Code(b"Q"), "takes more from its stack"),
        "BUILD of nothing": (Code(b"b"), "takes more from its stack"),
        "SETITEM of nothing": (Code(b"}Ns"), "takes more from its stack"),
        "BINPUT of nothing": (Code(b"q\0"), "takes more from its stack"),
        "below a mark": (Code(b"N(\x85"), "takes more from its stack"),
        "no mark": (Code(b"t"), "returns to a mark that it has not set"),
        "no memo": (Code(b"h\7"), "recalls object 7, which it has not stored"),
        "no such opcode": (Code(b"\xff"), "has the byte ff where an opcode should be"),
        "protocol 200": (Code(b"\x80\xc8"), "is of protocol 200, which does not exist"),
        "no UTF-8": (Code(b"X\1\0\0\0\xff"), "can't decode byte 0xff"),
        # what opcodes work on
        "STACK_GLOBAL of a number": (stack_named(1, "b"), "gives int and str for a name"),
        "STACK_GLOBAL of a list": (stack_named("os", ["b"]), "gives str and list for a name"),
        "APPEND to a tuple": (Code(b")Na"), "appends to tuple instead of list"),
        "APPENDS to a dict": (Code(b"}(Ne"), "appends to dict instead of list"),
        "SETITEM of a list": (Code(b"]NNs"), "sets items of list instead of dict"),
        "SETITEMS of a number": (Code(one + b"(NNu"), "sets items of int instead of dict"),
        "SETITEMS of an odd number": (Code(b"}(NNNu"), "has a dictionary with a key and no value"),
        "SETITEM of a name": (
            Code(named("torch.Size") + b"NNs"),
            "sets items of torch.Size instead of dict",
        ),
        "ADDITEMS of a list": (
            Code(b"](N" + pickle.ADDITEMS),
            "adds members to list instead of set",
        ),
        "BUILD of a dict": (Code(b"}" + code({"a": 1}) + b"b"), "sets attributes of dict"),
        "BUILD of a list": (Code(b"]}b"), "sets attributes of list instead of OrderedDict"),
        "BUILD of a tensor": (Code(tensor() + code({}) + b"b"), "sets attributes of Tensor"),
        "BUILD of a name": (Code(named("torch.Size") + b"}b"), "sets attributes of torch.Size"),
        "BUILD of a storage": (Code(storage() + b"}b"), "sets attributes of Storage"),
        "BUILD of a set": (Code(pickle.EMPTY_SET + b"}b"), "sets attributes of something unused"),
        "BUILD of a number": (Code(one + b"}b"), "sets attributes of int"),
        # calls
        "REDUCE of a text": (Code(code("os.system") + b")R"), "calls str with tuple"),
        "REDUCE of a tensor": (Code(tensor() + b")R"), "calls Tensor with tuple"),
        "REDUCE with a list": (Code(named("torch.Size") + b"]R"), "calls torch.Size with list"),
        "REDUCE of a dtype": (call("torch.float32", 1), "calls torch.float32, which is not a func"),
        "REDUCE of a storage": (
            call("torch.FloatStorage", 1),
            "calls torch.FloatStorage, which is",
        ),
        "OrderedDict of a number": (call("collections.OrderedDict", 1), "other than pairs"),
        "OrderedDict of texts": (call("collections.OrderedDict", ["ab", "cd"]), "other than pairs"),
        "OrderedDict of two": (call("collections.OrderedDict", [], []), "other than pairs"),
        "Size of a list": (call("torch.Size", [1]), "a torch.Size of something other than a tuple"),
        "parameter of a number": (call("torch.nn.parameter.Parameter", 1), "other than a tensor"),
        "parameter of nothing": (call("torch._utils._rebuild_parameter"), "other than a tensor"),
    }


def _wrong_storages() -> dict[str, tuple[Any, str]]:
    rows: dict[str, tuple[Any, str]] = {}
    for name, identity in {
        "number": 1,
        "text": "storage",
        "empty tuple": (),
        "module": ("module", named("torch.Size"), "a.py", "import os"),
        "too short": ("storage", named("torch.FloatStorage"), "0", "cpu"),
        "too long": ("storage", named("torch.FloatStorage"), "0", "cpu", 4, None, None),
        "class as text": ("storage", "torch.FloatStorage", "0", "cpu", 4),
        "key as number": ("storage", named("torch.FloatStorage"), 0, "cpu", 4),
        "key as tuple": ("storage", named("torch.FloatStorage"), ("0",), "cpu", 4),
        "size as text": ("storage", named("torch.FloatStorage"), "0", "cpu", "4"),
        "size as float": ("storage", named("torch.FloatStorage"), "0", "cpu", 4.0),
        "view as number": ("storage", named("torch.FloatStorage"), "0", "cpu", 4, 1),
        "view too short": ("storage", named("torch.FloatStorage"), "0", "cpu", 4, ("1", 0)),
        "view of texts": ("storage", named("torch.FloatStorage"), "0", "cpu", 4, ("1", "0", "1")),
    }.items():
        rows[f"storage: {name}"] = (persistent(identity), "a persistent id that is not a storage's")
    for name, of in {
        "of a dtype": storage("float32"),
        "of a function": storage("Size"),
        "negative": storage("FloatStorage", "0", -4),
        "negative view": storage("FloatStorage", "0", 4, ("1", -1, 2)),
        "view too large": storage("FloatStorage", "0", 4, ("1", 2, 3)),
        "view of negative size": storage("FloatStorage", "0", 4, ("1", 2, -1)),
    }.items():
        rows[f"storage {name}"] = (of, "its storage '0' is of torch.")
    return rows


def _wrong_tensors() -> dict[str, tuple[Any, str]]:
    rows: dict[str, tuple[Any, str]] = {}
    v3, hooks = "torch._utils._rebuild_tensor_v3", call("collections.OrderedDict")
    typed = (storage("ByteStorage", "0", 16), 0, (4,), (1,), False, hooks)
    attributed, v2 = "torch._tensor._rebuild_from_type_v2", named("torch._utils._rebuild_tensor_v2")
    for name, value in {
        "of nothing": call("torch._utils._rebuild_tensor_v2"),
        "of a number": tensor(1),
        "of a tensor": tensor(tensor()),
        "shape as list": tensor(shape=[4]),
        "shape as number": tensor(shape=4),
        "strides as text": tensor(strides="1"),
    }.items():
        rows[f"tensor {name}"] = (value, "of something other than a storage and numbers")
    for name, value in {
        "without": call(v3, *typed),
        "as text": call(v3, *typed, "torch.float32"),
        "as a storage": call(v3, *typed, named("torch.FloatStorage")),
    }.items():
        rows[f"dtype {name}"] = (value, "makes a tensor without a dtype")
    for name, value in {
        "of another function": call(
            attributed, named("torch.Size"), named("torch.Tensor"), ((),), {}
        ),
        "of itself": call(attributed, named(attributed), named("torch.Tensor"), (), {}),
        "of a text": call(attributed, v2, "torch.Tensor", (), {}),
        "of a list": call(attributed, v2, named("torch.Tensor"), [], {}),
    }.items():
        rows[f"attributes {name}"] = (value, "makes a tensor with attributes in an unknown way")
    for name, value in {
        "offset as text": tensor(offset="0"),
        "offset as bool": tensor(offset=False),
        "offset as tuple": tensor(offset=(0,)),
        "offset negative": tensor(offset=-1),
        "offset as float": tensor(offset=0.0),
        "length as text": tensor(shape=("4",)),
        "length as bool": tensor(shape=(True,)),
        "length as None": tensor(shape=(None,)),
        "length as tensor": tensor(shape=(tensor(),)),
        "length negative": tensor(shape=(-4,)),
        "lengths negative": tensor(shape=(-2, -2), strides=(2, 1)),
        "length of 64 bits": tensor(shape=(2**63,)),
        "length of 2000 bits": tensor(shape=(2**2000,)),
        "stride as float": tensor(strides=(1.0,)),
        "stride negative": tensor(strides=(-1,)),
    }.items():
        rows[name] = ({"a": value}, "tensor 'a', its offset, shape and strides are not natural")
    for name, value, message in (
        ("conjugated", tensor(None, 0, (4,), (1,), {"conj": True}), "conjugated or negated"),
        ("too many axes", tensor(None, 0, (1,) * 33, (1,) * 33), "it has 33 axes and 33 strides"),
        ("too few strides", tensor(None, 0, (2, 2), (1,)), "it has 2 axes and 1 strides"),
        ("no strides", tensor(None, 0, (4,), ()), "it has 1 axes and 0 strides"),
        ("expanded", tensor(None, 0, (4,), (0,)), "strides (0,) let elements of its shape (4,)"),
        ("overlapping", tensor(None, 0, (2, 2), (1, 1)), "strides (1, 1) let elements of its"),
        ("unfolded", tensor(None, 0, (2, 2), (1, 2**60)), "extends over bytes 0 to 4,611,686,018"),
        ("product too large", tensor(None, 0, (2**32, 2**32), (2**32, 1)), "its shape is (42949"),
        ("empty and too large", tensor(None, 0, (0, 2**62), (1, 1)), "its shape is (0, 46116860"),
        ("beyond the end", tensor(None, 1), "extends over bytes 4 to 20 of a storage of 16"),
        (
            "far beyond the end",
            tensor(None, 2**62, (1,)),
            "extends over bytes 18,446,744,073,709,5",
        ),
        ("longer than its storage", tensor(None, 0, (5,)), "extends over bytes 0 to 20 of a stor"),
        ("strides too far", tensor(None, 0, (2,), (4,)), "extends over bytes 0 to 20 of a storage"),
    ):
        rows[name] = ({"a": value}, message)
    return rows


# Pickles that are small and ask for much.


def bombs() -> dict[str, tuple[bytes, str | None]]:
    many = 490_000
    steps, names = "has a pickle of more than 500,000 steps", "so often that the names of what"
    rebuild = stored(named("torch._utils._rebuild_tensor_v2"), 1)
    arguments = stored(code((storage(), 0, (4,), (1,), False, {})), 2)
    wide = stored(code((storage(), 0, (1,) * 31 + (4,), (1,) * 32, False, {})), 2)
    double = stored(b"", 3) + recalled(3) + pickle.TUPLE2
    a_tensor = rebuild + arguments + b"R"
    long = stored(code((storage(), 0, (4,), (1,), False, {}, *(None,) * 200_000)), 2)
    emoji = "\N{GRINNING FACE}" * 2_000_000
    collisions = (k * (2**61 - 1) for k in range(1, 100_000))
    hook = pickle.LONG_BINPUT + b"\xff" * 4

    def listed(items: bytes) -> bytes:
        return program(Code(b"](" + items + b"e"))

    return {
        "many dicts": (listed(b"}" * many), None),
        "many dicts, stored": (listed(b"}\x94" * (many // 2)), None),
        "many dicts of one": (
            listed(stored(code("k"), 0) + b"N" + b"}h\0Ns" * (many // 4)),
            None,
        ),
        "many lists": (program(Code(b"]" * many)), None),
        "many marks": (program(Code(b"(" * many)), "takes more from its stack"),
        "many numbers": (listed(b"K\1" * many), None),
        "many OrderedDicts": (
            listed(stored(named("collections.OrderedDict"), 1) + b"h\1)R" * (many // 3)),
            None,
        ),
        "many tensors": (listed(a_tensor + b"h\1h\2R" * (many // 11)), None),
        "many tensors of many axes": (
            listed(rebuild + wide + b"R" + b"h\1h\2R" * (many // 80)),
            None,
        ),
        "too many tensors": (listed(a_tensor + b"h\1h\2R" * (many // 3)), steps),
        "many storages": (
            listed(stored(persistent_of_four(), 4) + b"h\4Q" * (many // 12)),
            None,
        ),
        "deep tuples": (program(Code(b")" + b"\x85" * many)), names),
        "deep lists of a tensor": (
            program(Code(b"]" * 200_000 + a_tensor + b"a" * 200_000)),
            names,
        ),
        "deep dicts": (
            program(Code((b"}" + code("k")) * 120_000 + b"N" + b"s" * 120_000)),
            names,
        ),
        "doubled tuples": (program({"a": Code(b")" + double * 60)}), names),
        "doubled tuples of a tensor": (program({"a": Code(a_tensor + double * 60)}), names),
        "doubled tuples as a key": (
            program(Code(b"}" + b")" + double * 60 + b"Ns")),
            None,
        ),
        "doubled tuples in a set": (
            program(call("builtins.set", [Code(b")" + double * 60)])),
            "holds no dictionary",
        ),
        "doubled tuples as a shape": (
            program({"a": tensor(shape=Code(b")" + double * 60))}),
            "it has 2 axes and 1 strides",
        ),
        "deep tuples as a key": (program(Code(b"}" + b")" + b"\x85" * 400_000 + b"Ns")), None),
        "keys of one hash": (
            program(Code(b"}(" + b"".join(code(k) + b"N" for k in collisions) + b"u")),
            None,
        ),
        "long keys, many times": (
            listed(stored(code("k" * 4_000_000), 1) + b"N" + b"}h\1]s" * 1000),
            names,
        ),
        "a long text of wide letters": (program({"a": emoji}), None),
        "a pickle too long": (program({"a": "k" * 9_000_000}), "more than 8,388,608 bytes"),
        "pairs, many times": (
            listed(
                stored(code([("a", 1)] * 20_000), 1)
                + stored(named("collections.OrderedDict"), 2)
                + b"h\2h\1\x85R" * 1000
            ),
            steps,
        ),
        "long arguments, many times": (
            listed(rebuild + long + b"R" + b"h\1h\2R" * 1000),
            steps,
        ),
        "long persistent ids": (
            listed(stored(code((None,) * 200_000), 2) + b"Q" + b"h\2Q" * 1000),
            "a persistent id that is not a storage's",
        ),
        "shared numbers": (
            listed(stored(code([1] * 100_000), 1) + b"h\1" * 100_000),
            names,
        ),
        "long integers": (listed((pickle.LONG1 + b"\xff" + b"\x7f" * 255) * 30_000), None),
        "a memo with a gap": (program(Code(b"}" + hook)), None),
    }


def persistent_of_four() -> bytes:
    return code(("storage", named("torch.FloatStorage"), "0", "cpu", 4))
