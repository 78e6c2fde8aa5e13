"""Pickles of tensors, read as text first: what could do more than list tensors is refused, never run."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import BinaryIO, Literal

from sfumato.core.errors import CheckpointCorrupt, InvalidInput

MAX_OPERATIONS = 20_000_000

Value = Literal["plain", "flat", "empty", "dictionary", "mapping", "maker", "named", "other"]
"""What stands on the stack: a number or text, a tuple of such, an empty tuple, a filled mapping, a class of
mappings, what makes tensors, another name, anything else."""

_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
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
_NO_VALUE = {"PROTO", "BINPUT", "LONG_BINPUT"}


def check(file: BinaryIO, where: str) -> None:
    """Refuse the next pickle of a file unless it does nothing but list tensors and plain data.

    Its operations are followed with kinds of values in place of values. PyTorch itself is told to run no code
    (weights_only); this is the wall before, which names what was refused, and keeps out what would exhaust
    the stack or the memory: keys that are nests of tuples, classes called with arguments of one's own.

    Raises:
        InvalidInput: it holds something else, which is named.
        CheckpointCorrupt: it is damaged.
    """
    try:
        _follow(pickletools.genops(file), where)
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, MemoryError) as error:
        raise CheckpointCorrupt(f"the list of tensors is damaged: {str(error)[:80]}", where=where) from None


def refused(what: str, where: str) -> InvalidInput:
    """The error of whoever holds more than tensors."""
    return InvalidInput(
        f"it holds {what[:120]}, which is more than tensors and could run code",
        where=where,
        do="where you trust it, save its state dict alone, as safetensors or by torch.save",
    )


def _follow(operations: Iterator[tuple[pickletools.OpcodeInfo, object, int | None]], where: str) -> None:
    stack: list[Value] = []
    marks: list[list[Value]] = []
    memo: dict[int, Value] = {}
    for number, (operation, argument, _) in enumerate(operations):
        name = operation.name
        if number >= MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS:,} operations")
        if name in _PLAIN:
            stack.append("plain")
        elif name in _NO_VALUE:
            if name != "PROTO":
                memo[int(argument)] = stack[-1]  # type: ignore[call-overload]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # type: ignore[call-overload]
        elif name == "GLOBAL":
            if argument not in ALLOWED:
                raise refused(str(argument).replace(" ", "."), where)
            stack.append(ALLOWED[str(argument)])
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"T": "empty", "L": "other", "D": "dictionary"}[name[6]])  # type: ignore[arg-type]
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            if name == "TUPLE":
                items, stack = stack, marks.pop()
            else:
                count = int(name[5:])
                items = [stack.pop() for _ in range(count)]
            stack.append(_tuple(items))
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            _fill(stack, items, name == "SETITEMS", where)
        elif name in ("APPEND", "SETITEM"):
            items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
            _fill(stack, items, name == "SETITEM", where)
        elif name in ("REDUCE", "NEWOBJ"):
            given, called = stack.pop(), stack.pop()
            if called == "mapping" and given == "empty":
                stack.append("dictionary")
            elif called == "maker" and name == "REDUCE":
                stack.append("other")
            else:
                raise refused("something called that is no part of a tensor", where)
        elif name == "BUILD":
            if (stack.pop(), stack[-1]) != ("dictionary", "dictionary"):
                raise refused("an object with a state of its own", where)
        elif name == "BINPERSID":
            if stack.pop() != "flat":
                raise ValueError("a tensor lies nowhere")
            stack.append("other")
        elif name == "STOP":
            return
        else:
            raise refused(f"an operation that no tensor needs ({name})", where)
    raise EOFError("it ends early")


def _tuple(items: list[Value]) -> Value:
    if not items:
        return "empty"
    return "flat" if all(item in ("plain", "named") for item in items) else "other"


def _fill(stack: list[Value], items: list[Value], keyed: bool, where: str) -> None:
    if keyed and (stack[-1] != "dictionary" or len(items) % 2 or any(item != "plain" for item in items[::2])):
        raise refused("a dictionary whose keys are neither texts nor numbers", where)
    if not keyed and stack[-1] != "other":
        raise ValueError("items for what is no list")
