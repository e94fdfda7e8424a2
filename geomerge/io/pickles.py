"""Pickles as inert values, parsed from their opcodes without running any code.

``torch.save`` and ``pickle.dump`` write names, tuples, dictionaries, references to storages and any
other object. Tensors become :class:`StoredTensor`, arrays of NumPy :class:`StoredArray`, and
every other named object becomes a :class:`Foreign` value, which keeps only its arguments and state.
So other objects beside the weights of a checkpoint do not prevent reading.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Foreign", "Storage", "StoredArray", "StoredTensor", "read_pickle"]

_OPERATIONS = 500_000  # a second of reading; more where the file has bytes to show for it
_BYTES_EACH = 16  # bytes of a file for each operation
_KINDS = {  # names of storages by the type of their numbers
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32",
}  # fmt: skip
_SIZES = {  # bytes of a number
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16, "qint8": 1, "quint8": 1,
    "qint32": 4, "bytes": 1,
}  # fmt: skip
_STORAGES = {f"torch {name}Storage": kind for name, kind in _KINDS.items()}
_STORAGES |= {"torch.storage UntypedStorage": "bytes", "torch UntypedStorage": "bytes"}
_DICTIONARIES = ("collections OrderedDict", "collections Counter", "collections defaultdict")
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_UNTYPED_TENSOR = "torch._utils _rebuild_tensor_v3"
_SUBCLASS = "torch._tensor _rebuild_from_type_v2"
_PARAMETERS = (
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
)  # fmt: skip
_ARRAY = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_BUFFER_ARRAY = ("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
_ENCODE = "_codecs encode"  # encoder of bytes in pickles of the second protocol
_LOAD = "torch.storage _load_from_bytes"


class Storage(NamedTuple):
    """A storage as a pickle claims it.

    Attributes:
        key: Its name in the file.
        size: Its length in bytes.
        kind: Name of the type of its numbers; ``"bytes"`` where each tensor has its own.
        content: Its bytes, if the pickle holds them itself.
    """

    key: str
    size: int
    kind: str
    content: bytes | None = None


class StoredTensor(NamedTuple):
    """A tensor as a pickle claims it; ``kind`` is the name of its type."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    kind: str


class StoredArray:
    """An array of NumPy as a pickle claims it.

    Attributes:
        content: Its bytes; None of an array without plain numbers.
        shape: Its shape.
        kind: Type of its numbers, such as ``"<f4"``.
        fortran: Whether its first index runs fastest.
    """

    __slots__ = ("content", "fortran", "kind", "shape")

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.shape: tuple[int, ...] = ()
        self.kind = ""
        self.fortran = False

    def set_state(self, state: Any) -> None:
        """Take what NumPy's own ``__setstate__`` would be given, if it is of plain numbers."""
        if type(state) is not tuple or len(state) != 5:
            return
        _, shape, dtype, fortran, content = state
        if type(content) is not bytes or not isinstance(dtype, Foreign) or not dtype.arguments:
            return
        if type(shape) is not tuple or any(type(s) is not int or s < 0 for s in shape):
            return
        order = dtype.state[1] if type(dtype.state) is tuple and len(dtype.state) > 1 else "|"
        self.content, self.shape, self.fortran = content, shape, bool(fortran)
        self.kind = f"{order}{dtype.arguments[0]}"


class Foreign:
    """Any other object: what it is called and what it was made of.

    Attributes:
        name: Name of its class or function, ``"argparse.Namespace"``.
        arguments: Arguments of the call that made it.
        state: Its attributes, where it was given any.
        items: Its entries, if it is some dictionary.
        elements: Its elements, if it is some list or set.
    """

    __slots__ = ("arguments", "elements", "items", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []


class _Name(NamedTuple):
    text: str


def read_pickle(stream: io.BytesIO) -> tuple[Any, list[Storage]]:
    """Read one pickle up to its end, without running anything.

    Args:
        stream: Stream at the pickle's first byte; it is left after its last.

    Returns:
        The object as inert values, and the storages it refers to, each once.

    Raises:
        ValueError: If it is damaged, or longer than any file of weights.
    """
    return _Reader().read(stream)


class _Reader:
    """The stack, the marks and the memo of a pickle being read."""

    def __init__(self, inner: bool = False) -> None:
        self.inner = inner  # whether it reads what another pickle holds
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def read(self, stream: io.BytesIO) -> tuple[Any, list[Storage]]:
        most = max(_OPERATIONS, len(stream.getbuffer()) // _BYTES_EACH)
        try:
            for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
                if code.name == "STOP":
                    return self.stack.pop(), list(self.storages.values())
                if count == most:
                    raise ValueError(f"more than {most} operations in its pickle")
                self.take(code.name, argument)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError("its pickle is damaged") from error
        raise ValueError("its pickle has no end")

    def take(self, code: str, argument: Any) -> None:
        """Do one operation."""
        stack = self.stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _MAKERS:
            stack.append(_MAKERS[code]())
        elif code in _VALUES:
            stack.append(argument)
        elif code in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif code == "MARK":
            self.below.append(stack)
            self.stack = []
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-k] for k in range(_TUPLES[code], 0, -1))]
        elif code in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            self.whole(code, self.marked())
        elif code in ("APPEND", "APPENDS", "ADDITEMS"):
            self.extend([stack.pop()] if code == "APPEND" else self.marked())
        elif code in ("SETITEM", "SETITEMS"):
            self.set_items([stack.pop(), stack.pop()][::-1] if code == "SETITEM" else self.marked())
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            self.name(argument if code == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}")
        elif code in ("BINPERSID", "PERSID"):
            self.store(stack.pop() if code == "BINPERSID" else argument)
        elif code in ("REDUCE", "NEWOBJ"):
            self.call(*[stack.pop(), stack.pop()][::-1])
        elif code == "NEWOBJ_EX":
            stack.pop()  # keyword arguments
            self.call(*[stack.pop(), stack.pop()][::-1])
        elif code in ("OBJ", "INST", "EXT1", "EXT2", "EXT4"):
            self.make(code, argument)
        elif code == "BUILD":
            self.build(stack.pop())
        elif code == "DUP":
            stack.append(stack[-1])
        elif code in ("POP", "POP_MARK"):
            self.drop(code)
        elif code not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise ValueError(f"its pickle has the operation {code}")

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def drop(self, code: str) -> None:
        if code == "POP" and self.stack:
            self.stack.pop()
        else:
            self.marked()

    def whole(self, code: str, items: list[Any]) -> None:
        if code == "TUPLE":
            self.stack.append(tuple(items))
        elif code == "DICT":
            self.stack.append({})
            self.set_items(items)
        else:
            self.stack.append(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target = target.elements
        if type(target) is not list:
            raise ValueError("its pickle appends to no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target = target.items
        if type(target) is not dict or len(items) % 2:
            raise ValueError("its pickle sets items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples can take forever.
            if key is None or type(key) in (str, int, float, bool):
                target[key] = value

    def name(self, text: str) -> None:
        self.stack.append(_Name(text))

    def make(self, code: str, argument: Any) -> None:
        if code in ("OBJ", "INST"):
            items = self.marked()
            named = _Name(argument) if code == "INST" else items.pop(0)
            self.stack.append(Foreign(_dotted(named), tuple(items)))
        else:
            self.stack.append(Foreign("an extension of pickle"))

    def store(self, claim: Any) -> None:
        if type(claim) is not tuple or len(claim) not in (5, 6) or claim[0] != "storage":
            raise ValueError("its pickle refers to no storage")
        _, name, key, place, length = claim[:5]
        if len(claim) == 6 and claim[5] is not None:
            raise ValueError("its pickle has views of storages")
        kind = _STORAGES.get(name.text) if type(name) is _Name else None
        if kind is None:
            raise ValueError("a storage is of no known type")
        if type(key) is not str or type(place) is not str or type(length) is not int or length < 0:
            raise ValueError("a storage has no name, no place or no length")
        storage = Storage(key, length * _SIZES[kind], kind)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise ValueError(f"it claims two lengths of the storage {key[:40]!r}")
        self.stack.append(storage)

    def call(self, name: Any, given: Any) -> None:
        what = name.text if type(name) is _Name else None
        if type(given) is not tuple:
            raise ValueError("its pickle calls something without arguments")
        if what in _DICTIONARIES:
            self.stack.append(_dictionary(given))
        elif what == _ENCODE and len(given) == 2 and type(given[0]) is str:
            self.stack.append(given[0].encode("latin1", "replace"))
        elif what in _ARRAY:
            self.stack.append(StoredArray())
        elif what == _LOAD and len(given) == 1 and type(given[0]) is bytes and not self.inner:
            self.stack.append(_inner_storage(given[0]))
        else:
            self.stack.append(_value(what, name, given))

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        elif isinstance(target, StoredArray):
            target.set_state(state)


def _inner_storage(content: bytes) -> Any:
    """Return the storage that ``pickle.dump`` of a tensor puts into bytes of its own."""
    stream = io.BytesIO(content)
    for _ in range(3):
        _Reader(inner=True).read(stream)  # a magic number, a version, sizes of types
    storage, _ = _Reader(inner=True).read(stream)
    _Reader(inner=True).read(stream)  # the order of storages, of which there is one
    numbers = content[stream.tell() + 8 :]
    if not isinstance(storage, Storage) or storage.size != len(numbers):
        raise ValueError("its pickle holds half a storage")
    return storage._replace(content=numbers)


def _dotted(name: Any) -> str:
    return name.text.replace(" ", ".")[:80] if isinstance(name, _Name) else "an object"


def _dictionary(given: tuple[Any, ...]) -> dict[Any, Any]:
    """Return a new dictionary; Python 2 wrote the entries of an ordered one as pairs."""
    content = given[-1] if given else {}
    if type(content) is dict:
        return content
    pairs = content if type(content) is list else []
    good = [p for p in pairs if type(p) in (list, tuple) and len(p) == 2 and type(p[0]) is str]
    return {pair[0]: pair[1] for pair in good}


def _value(what: str | None, name: Any, given: tuple[Any, ...]) -> Any:
    """Return a tensor or array where a call makes one, else a foreign value."""
    first = given[0] if given else None
    if what in _TENSORS and type(first) is Storage and len(given) >= 4:
        return _tensor(first, given[1:4], first.kind)
    if what == _UNTYPED_TENSOR and type(first) is Storage and len(given) >= 7:
        kind = given[6].text if type(given[6]) is _Name else "unknown"
        return _tensor(first, given[1:4], kind.removeprefix("torch "))
    if what in _PARAMETERS and type(first) is StoredTensor:
        return first
    if what == _SUBCLASS and type(first) is _Name and len(given) >= 3 and type(given[2]) is tuple:
        return _value(first.text, first, given[2])
    if what in _BUFFER_ARRAY and len(given) >= 3 and isinstance(first, bytes | bytearray):
        array = StoredArray()
        array.set_state((1, given[2], given[1], len(given) > 3 and given[3] == "F", bytes(first)))
        return array
    return Foreign(_dotted(name), given)


def _tensor(storage: Storage, place: tuple[Any, ...], kind: str) -> StoredTensor:
    offset, shape, stride = place
    if isinstance(shape, Foreign):  # torch.Size
        shape = next(iter(shape.arguments), ())
    sizes = (*shape, *stride, offset)
    if any(type(size) is not int or not 0 <= size < 2**48 for size in sizes):
        raise ValueError("a tensor has no shape")
    if len(shape) != len(stride):
        raise ValueError("a tensor has a shape and other strides")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), kind)


_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
