"""Pickles of tensors, read as text first: what could do more than list tensors is refused, never run."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

from sfumato.core.errors import CheckpointCorrupt, InvalidInput

MAX_OPERATIONS = 4_000_000
"""Most operations of one pickle; a state dict has about 30 a tensor."""

Value = Literal["plain", "flat", "empty", "dictionary", "mapping", "maker", "named", "other"]
"""What stands on the stack: a number or text, a tuple of such, an empty tuple, a filled mapping, a class of
mappings, what makes tensors, another name, anything else."""


class _Item(NamedTuple):
    """What stands on the stack: its kind, and what it is where a tensor's place in the file may need it."""

    kind: Value
    held: Any = None


_STORAGES = {
    **{"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1},
    **{"Byte": 1, "Bool": 1},
}
"""Bytes of a number, by the name of what holds such."""

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
ALLOWED: dict[str, Value] = {
    "collections OrderedDict": "mapping",
    "argparse Namespace": "mapping",
    "torch._utils _rebuild_tensor": "maker",
    "torch._utils _rebuild_tensor_v2": "maker",
    "torch._utils _rebuild_parameter": "maker",
    "torch Size": "maker",
    **{f"torch {name}Storage": "named" for name in _STORAGES},
    **{f"torch {name}": "named" for name in _DTYPES},
}
"""All that a pickle of tensors and plain data may name; none of it does anything but hold them."""

_PLAIN = set(
    [
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINSTRING",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
    ]
)
_EMPTY, _OTHER, _DICTIONARY = _Item("empty"), _Item("other"), _Item("dictionary")
_NO_VALUE = {"PROTO", "BINPUT", "LONG_BINPUT"}


def check(file: BinaryIO, where: str) -> dict[str, int]:
    """Refuse the next pickle of a file unless it does nothing but list tensors and plain data.

    Its operations are followed with kinds of values in place of values. PyTorch itself is told to run no code
    (weights_only); this is the wall before, which names what was refused, and keeps out what would exhaust
    the stack or the memory: keys that are nests of tuples, classes called with arguments of one's own.

    Returns:
        How many bytes of numbers the tensors say they have, by the record that holds them.

    Raises:
        InvalidInput: it holds something else, which is named.
        CheckpointCorrupt: it is damaged.
    """
    try:
        return _follow(pickletools.genops(file), where)
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, MemoryError) as error:
        raise CheckpointCorrupt(f"the list of tensors is damaged: {str(error)[:80]}", where=where) from None


def refused(what: str, where: str) -> InvalidInput:
    """The error of whoever holds more than tensors."""
    return InvalidInput(
        f"it holds {what[:120]}, which is more than tensors and could run code",
        where=where,
        do="where you trust it, save its state dict alone, as safetensors or by torch.save",
    )


def _follow(
    operations: Iterator[tuple[pickletools.OpcodeInfo, object, int | None]], where: str
) -> dict[str, int]:
    stack: list[_Item] = []
    marks: list[list[_Item]] = []
    memo: dict[int, _Item] = {}
    claimed: dict[str, int] = {}
    for number, (operation, argument, _) in enumerate(operations):
        name = operation.name
        if number >= MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS:,} operations")
        if name in _PLAIN:
            stack.append(_Item("plain", argument))
        elif name in _NO_VALUE:
            if name != "PROTO":
                memo[int(argument)] = stack[-1]  # type: ignore[call-overload]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # type: ignore[call-overload]
        elif name == "GLOBAL":
            if argument not in ALLOWED:
                raise refused(str(argument).replace(" ", "."), where)
            stack.append(_Item(ALLOWED[str(argument)], argument))
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"T": _EMPTY, "L": _OTHER, "D": _DICTIONARY}[name[6]])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            if name == "TUPLE":
                items, stack = stack, marks.pop()
            else:
                count = int(name[5:])
                items = [stack.pop() for _ in range(count)][::-1]
            stack.append(_tuple(items))
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            _fill(stack, items, name == "SETITEMS", where)
        elif name in ("APPEND", "SETITEM"):
            items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
            _fill(stack, items, name == "SETITEM", where)
        elif name in ("REDUCE", "NEWOBJ"):
            given, called = stack.pop(), stack.pop()
            if called.kind == "mapping" and given.kind == "empty":
                stack.append(_DICTIONARY)
            elif called.kind == "maker" and name == "REDUCE":
                stack.append(_OTHER)
            else:
                raise refused("something called that is no part of a tensor", where)
        elif name == "BUILD":
            if (stack.pop().kind, stack[-1].kind) != ("dictionary", "dictionary"):
                raise refused("an object with a state of its own", where)
        elif name == "BINPERSID":
            record, size = _place(stack.pop())
            claimed[record] = max(size, claimed.get(record, 0))
            stack.append(_OTHER)
        elif name == "STOP":
            return claimed
        else:
            raise refused(f"an operation that no tensor needs ({name})", where)
    raise EOFError("it ends early")


def _tuple(items: list[_Item]) -> _Item:
    if not items:
        return _EMPTY
    flat = all(item.kind in ("plain", "named") for item in items)
    return _Item("flat", [item.held for item in items]) if flat else _OTHER


def _place(item: _Item) -> tuple[str, int]:
    """The record a tensor's numbers are in, and how many bytes they take there, of what torch.save wrote."""
    what, storage, record, _, count, *_ = item.held if item.kind == "flat" else [None] * 5
    size = _STORAGES.get(str(storage).removeprefix("torch ").removesuffix("Storage"))
    if (
        what != "storage"
        or size is None
        or not isinstance(record, str)
        or type(count) is not int
        or count < 0
    ):
        raise ValueError("a tensor lies nowhere")
    return record, size * count


def _fill(stack: list[_Item], items: list[_Item], keyed: bool, where: str) -> None:
    into = stack[-1].kind
    if keyed and (into != "dictionary" or len(items) % 2 or any(item.kind != "plain" for item in items[::2])):
        raise refused("a dictionary whose keys are neither texts nor numbers", where)
    if not keyed and into != "other":
        raise ValueError("items for what is no list")
