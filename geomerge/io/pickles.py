"""What a PyTorch pickle would build, read from its opcodes: nothing in it is ever run.

``torch.save`` writes names, tuples, dictionaries and references to storages; a pickle may hold much
else. The reader below knows only the opcodes and names that tensors need. It makes inert values of
them, so that a file's claims can be held against its bytes before PyTorch sees either.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["ForeignObjectError", "Storage", "read_pickle"]

_OPERATIONS = 500_000  # a second of reading; more where the file has bytes to show for it
_BYTES_EACH = 16  # of a file, for one operation
_BYTES = {  # of an element, by the name of the storage
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1,
}  # fmt: skip
_STORAGES = {f"torch {kind}Storage": size for kind, size in _BYTES.items()}
_ORDERED = "collections OrderedDict"
_COUNTER = "collections Counter"  # the milestones of a learning rate schedule
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
_PLAIN = ("torch Size", "torch device", "builtins set", "__builtin__ set")  # beside weights
_TYPES = {f"torch {name}" for name in (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)}  # fmt: skip
_NAMES = {*_STORAGES, *_TENSORS, *_TYPES, *_PLAIN, _ORDERED, _COUNTER, _PARAMETER}


class ForeignObjectError(ValueError):
    """A pickle names something that plain tensors do not need."""


class Storage(NamedTuple):
    """A storage as a pickle claims it: its key in the file and its length in bytes."""

    key: str
    size: int


class _Name(NamedTuple):
    text: str


class _Tensor(NamedTuple):
    storage: Storage


def read_pickle(stream: io.BytesIO) -> tuple[Any, list[Storage]]:
    """Read one pickle up to its end, without running anything.

    Args:
        stream: At the pickle's first byte; it is left after its last.

    Returns:
        The object with markers in the place of tensors, and the storages it refers to, each once.

    Raises:
        ForeignObjectError: If it holds objects other than tensors and plain values.
        ValueError: If it is damaged, or longer than any file of weights.
    """
    return _Reader().read(stream)


class _Reader:
    """The stack, the marks and the memo of a pickle being read."""

    def __init__(self) -> None:
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
        elif code in ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"):
            stack.append(argument)
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "MARK":
            self.below.append(stack)
            self.stack = []
        elif code in _TUPLES:
            stack[-_TUPLES[code] :] = [tuple(stack[-k] for k in range(_TUPLES[code], 0, -1))]
        elif code == "TUPLE":
            items = tuple(self.marked())
            self.stack.append(items)
        elif code in ("APPEND", "APPENDS"):
            self.extend([stack.pop()] if code == "APPEND" else self.marked())
        elif code in ("SETITEM", "SETITEMS"):
            self.set_items([stack.pop(), stack.pop()][::-1] if code == "SETITEM" else self.marked())
        elif code == "GLOBAL":
            self.name(argument)
        elif code == "BINPERSID":
            self.store(stack.pop())
        elif code == "REDUCE":
            self.call(*[stack.pop(), stack.pop()][::-1])
        elif code == "BUILD":
            self.build(stack.pop())
        elif code != "PROTO":
            raise ForeignObjectError(f"the pickle operation {code}")

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle appends to no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("its pickle sets items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples can take forever.
            if key is not None and type(key) not in (str, int, float, bool):
                raise ForeignObjectError(f"a key of type {type(key).__name__}")
            target[key] = value

    def name(self, text: str) -> None:
        if text not in _NAMES:
            raise ForeignObjectError(text.replace(" ", ".")[:80])
        self.stack.append(_Name(text))

    def store(self, claim: Any) -> None:
        if type(claim) is not tuple or len(claim) not in (5, 6) or claim[0] != "storage":
            raise ValueError("its pickle refers to no storage")
        _, kind, key, place, length = claim[:5]
        if len(claim) == 6 and claim[5] is not None:
            raise ForeignObjectError("views of storages")
        if type(kind) is not _Name or kind.text not in _STORAGES:
            raise ValueError("a storage is of no known type")
        if type(key) is not str or type(place) is not str or type(length) is not int or length < 0:
            raise ValueError("a storage has no name, no place or no length")
        storage = Storage(key, length * _STORAGES[kind.text])
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it claims two lengths of the storage {key[:40]!r}")
        self.stack.append(storage)

    def call(self, name: Any, given: Any) -> None:
        what = name.text if type(name) is _Name else None
        if type(given) is not tuple:
            raise ValueError("its pickle calls something without arguments")
        if what in (_ORDERED, _COUNTER) and given in ((), ({},)):
            self.stack.append({})
        elif what == _COUNTER and len(given) == 1 and type(given[0]) is dict:
            self.stack.append(given[0])
        elif what in _PLAIN and all(type(part) in _VALUES for part in given):
            self.stack.append(None)
        elif what in _TENSORS and type(given[0]) is Storage and len(given) <= 6:
            self.stack.append(_Tensor(given[0]))
        elif what == _PARAMETER and type(given[0]) is _Tensor:
            self.stack.append(given[0])
        else:
            raise ForeignObjectError(f"an unusual call of {what or 'a value'}")

    def build(self, state: Any) -> None:
        """Accept only the versions of layers that a state dict carries beside its tensors."""
        target = self.stack[-1]
        if type(target) is not dict or type(state) is not dict or set(state) - {"_metadata"}:
            raise ForeignObjectError("an object with attributes of its own")


_VALUES = (tuple, list, str, int)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAKERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
