"""A reader of pickles that executes nothing: opcodes become plain values and inert records.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the program names.
This one knows the opcodes that CPython writes in protocols 2 to 5, and a fixed table of names, each of which stands for
a function of ours. Anything else is refused by name, before anything is made of it.

Reading takes little memory beside the file: bytes and long texts stay views of it, and what a file can ask for is
counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from dnnlib.config import shorten
from dnnlib.errors import UserError

DEEPEST = 100  # levels of containers in containers; a network has about 40
MOST_OPCODES = 300_000  # of a file with its storages; the largest published networks have about 60 000
LONGEST_NUMBER = 10  # bytes of a whole number, which storages begin with
LONGEST_TEXT = 1000  # bytes of a text that is decoded; source code is longer, and stays a view
MOST_TEXT = 1 << 22  # bytes of all decoded texts; a character may take four times as many in memory
OLDEST, NEWEST = 2, 5  # protocols

# Name that a pickle may ask for, as (module, name) -> its meaning: a `Function`, or a plain value.
Table = Mapping[tuple[str, str], Any]
# Makes a value of the arguments of a call.
Function = Callable[["PickleReader", tuple], Any]


class LongText:
    """A text too long to be of use, as it stands in the file."""

    def __init__(self, content: memoryview) -> None:
        self.content = content  # UTF-8

    def __repr__(self) -> str:
        return f"a text of {len(self.content)} bytes"


class Named:
    """An admitted name, with its meaning in the table."""

    def __init__(self, name: str, meaning: Any) -> None:
        self.name, self.meaning = name, meaning

    def __repr__(self) -> str:
        return self.name


class Record:
    """An object that a pickle describes. It may contain other values, and gets a state if the pickle gives it one."""

    parts: Iterable[Any] = ()  # the values of the pickle in it

    def set_state(self, reader: PickleReader, state: Any) -> None:
        """Take the state of the object. Raises UserError, as most objects have none."""
        reader.refuse(f"{self!r} with a state")

    def __repr__(self) -> str:
        return "an object"


class Budget:
    """What a file, storages included, may still ask for."""

    def __init__(self) -> None:
        self.opcodes, self.text = MOST_OPCODES, MOST_TEXT


class PickleReader:
    """Reads pickles that lie one after the other. `at` is the position of the next one."""

    def __init__(
        self,
        data: memoryview,
        where: str,
        table: Table,
        budget: Budget,
        find: Callable[[Any], Any] | None = None,
        part: str = "",
    ) -> None:
        """where: name of the file, for messages. part: which part of the file `data` is, such as " of a storage".

        find: returns what a persistent id stands for; None: the pickles may have none.
        """
        self.data, self.where, self.table, self.budget = data, where, table, budget
        self.find, self.part = find, part
        self.at = 0
        self._begin()

    def _begin(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return the value of the next pickle.

        Raises UserError that names the file if it is damaged, or asks for anything that networks do not need.
        """
        self._begin()
        start = self.take(2)
        if start[0] != PROTO or not OLDEST <= start[1] <= NEWEST:
            self.at -= 2
            self.refuse(f"expected a pickle of protocol {OLDEST} to {NEWEST}")
        budget = self.budget
        while (code := self.take(1)[0]) != STOP:
            if (step := _STEPS.get(code)) is None:
                self.at -= 1
                self.refuse(f"the opcode {code:#04x}, which no network needs")
            budget.opcodes -= 1
            if budget.opcodes < 0:
                raise UserError(f"{self.where}: more than {MOST_OPCODES} opcodes, far more than networks need")
            step(self)
        value = self.pop()
        if self.stack or self.below:
            self.refuse("it ends before all values are in their places")
        return value

    # --- refusals

    def refuse(self, what: str) -> NoReturn:
        """Raise UserError about a pickle that is not what the published code writes."""
        raise UserError(
            f"{self.where}: damaged, or not a checkpoint of the published StyleGAN2-ADA code: {what} "
            f"(at byte {self.at}{self.part})"
        )

    # --- bytes

    def take(self, size: int) -> memoryview:
        """Return a view of the next bytes, and go on behind them."""
        end = self.at + size
        if end > len(self.data):
            self.refuse_cut_off()
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def refuse_cut_off(self) -> NoReturn:
        """Raise UserError about bytes that are not there."""
        raise UserError(f"{self.where} is cut off, or damaged: it ends in the middle of a value; copy it again")

    def number(self, layout: struct.Struct) -> Any:
        """Return the number that comes next."""
        return layout.unpack(self.take(layout.size))[0]

    def long(self, size: int) -> int:
        """Return the number of so many bytes that comes next."""
        if size > LONGEST_NUMBER:
            self.refuse(f"a number of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def text(self, size: int) -> str | LongText:
        """Return the text of so many bytes that comes next."""
        content = self.take(size)
        return LongText(content) if size > LONGEST_TEXT else self.decode(content)

    def decode(self, content: memoryview) -> str:
        """Return UTF-8 as text."""
        self.budget.text -= len(content)
        if self.budget.text < 0:
            raise UserError(f"{self.where}: more than {MOST_TEXT} bytes of names, far more than networks need")
        try:
            return str(content, "utf-8")
        except UnicodeDecodeError:
            self.refuse("a text that is not UTF-8")

    def line(self) -> str:
        """Return the text up to the end of the line, and go on behind it."""
        size = bytes(self.data[self.at : self.at + LONGEST_TEXT]).find(b"\n")
        if size < 0:
            self.refuse("a name without an end")
        text = self.decode(self.take(size))
        self.at += 1
        return text

    def check_frame(self, size: int) -> None:
        """Raise UserError if a frame of this size ends beyond the file."""
        if self.at + size > len(self.data):
            self.refuse_cut_off()

    # --- stack and memo

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Return the topmost value, and take it off the stack."""
        self.need_value()
        return self.stack.pop()

    def need_value(self) -> None:
        """Raise UserError if the stack is empty down to the last mark."""
        if not self.stack:
            self.refuse("a value is missing")

    def top(self, kind: type) -> Any:
        """Return the topmost value. Raises UserError if it is of another kind."""
        self.need_value()
        if type(self.stack[-1]) is not kind:
            self.refuse(f"expected a {kind.__name__}, found {shorten(self.stack[-1])}")
        return self.stack[-1]

    def mark(self) -> None:
        """Begin a new stack above this one."""
        if len(self.below) == DEEPEST:
            _refuse_nesting(self.where)
        self.below.append(self.stack)
        self.stack = []

    def pop_marked(self) -> list[Any]:
        """Return the values since the last mark, and go back to the stack below."""
        if not self.below:
            self.refuse("a mark is missing")
        values, self.stack = self.stack, self.below.pop()
        return values

    def remember(self, index: int) -> None:
        """Put the topmost value into the memo."""
        self.need_value()
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push a value of the memo."""
        if index not in self.memo:
            self.refuse(f"number {index} of the memo, which is not there")
        self.push(self.memo[index])

    # --- containers

    def extend(self, values: list[Any]) -> None:
        """Append values to the topmost list. Sets are lists, too: nothing is looked up in them."""
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Put keys and values, which come by turns, into the topmost dictionary."""
        target = self.top(dict)
        if len(values) % 2:
            self.refuse("a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only texts: nobody can make their hashes collide, and to compute one never takes long.
            if type(key) is not str:
                self.refuse(f"expected a name as key, found {shorten(key)}")
            target[key] = value

    def tuple_of(self, size: int) -> None:
        """Make a tuple of the topmost values."""
        if len(self.stack) < size:
            self.refuse("a value is missing")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    # --- names, and what is made of them

    def admit(self, module: Any, name: Any) -> None:
        """Push an admitted name. Raises UserError that names any other."""
        if type(module) is not str or type(name) is not str:
            self.refuse("a name that is no text")
        if (module, name) not in self.table:
            refuse_name(self.where, module, name)
        self.push(Named(f"{module}.{name}", self.table[module, name]))

    def admit_from_stack(self) -> None:
        """Push the admitted name that the two topmost values spell."""
        name, module = self.pop(), self.pop()
        self.admit(module, name)

    def call(self) -> None:
        """Push what a function of ours makes of its arguments."""
        arguments, named = self.pop(), self.pop()
        if type(named) is not Named or not callable(named.meaning) or type(arguments) is not tuple:
            self.refuse(f"a call of {shorten(named)}")
        self.push(named.meaning(self, arguments))

    def build(self) -> None:
        """Give the topmost value its state."""
        state = self.pop()
        self.need_value()
        value = self.stack[-1]
        if isinstance(value, Record):
            value.set_state(self, state)
        elif state is not None and not (type(state) is dict and not state):
            self.refuse(f"{shorten(value)} with a state")

    def find_persistent(self) -> None:
        """Push what a persistent id stands for."""
        if self.find is None:
            self.refuse("a persistent id")
        self.push(self.find(self.pop()))


def refuse_name(where: str, module: str, name: str) -> NoReturn:
    """Raise UserError about a name that is not admitted."""
    full = f"{module}.{name}"
    # Lookalikes are shown with what makes them others: spaces, letters of other alphabets.
    shown = full if full.isascii() and full.replace(".", "").isidentifier() else ascii(full)
    shown = shown if len(shown) <= 100 else shown[:100] + "…"
    if module.split(".")[:2] == ["dnnlib", "tflib"]:
        raise UserError(
            f"{where} asks for {shown}: it was saved by StyleGAN code for TensorFlow; convert it first with legacy.py "
            "of the published StyleGAN2-ADA code for PyTorch"
        )
    raise UserError(f"{where} asks for {shown}, which no network needs: it is not opened further")


def check_nesting(value: Any, where: str) -> None:
    """Raise UserError if containers go more than DEEPEST levels deep, or contain themselves.

    Each container is looked into once, however many others contain it.
    """
    levels: dict[int, int] = {}  # id of a container -> levels of containers in it, itself included; 0: not yet known
    open_ones = [_Open(value)]
    while open_ones:
        container = open_ones[-1]
        for part in container.parts:
            if _parts(part) is None:
                continue
            if id(part) not in levels:
                levels[id(part)] = 0
                open_ones.append(_Open(part))
                break
            if not levels[id(part)]:
                raise UserError(f"{where}: a value that contains itself, which no network needs")
            container.levels = max(container.levels, 1 + levels[id(part)])
        else:
            open_ones.pop()
            levels[id(container.value)] = container.levels
            if open_ones:
                open_ones[-1].levels = max(open_ones[-1].levels, 1 + container.levels)
        if open_ones and len(open_ones) - 1 + open_ones[-1].levels > DEEPEST:
            _refuse_nesting(where)


def _refuse_nesting(where: str) -> NoReturn:
    """Raise UserError about containers that go too deep."""
    raise UserError(f"{where}: values nested more than {DEEPEST} levels deep, far deeper than in networks")


class _Open:
    """A container that is being looked into."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.parts = iter(_parts(value) or ())
        self.levels = 1  # of containers in it, as far as they are known, itself included


def _parts(value: Any) -> Iterable[Any] | None:
    """Return the values in a container, or None for any other value."""
    if type(value) in (list, tuple):
        return value
    if type(value) is dict:
        return value.values()
    return value.parts if isinstance(value, Record) else None


# --- opcodes ----------------------------------------------------------------------------------------------------------

PROTO, STOP = 0x80, 0x2E
_U1, _U2, _U4, _U8 = (struct.Struct(layout) for layout in ("<B", "<H", "<I", "<Q"))
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")

# Code -> what it does. Numbers and sizes follow in the file.
_STEPS: dict[int, Callable[[PickleReader], None]] = {
    # Values
    0x4E: lambda r: r.push(None),  # NONE
    0x88: lambda r: r.push(True),  # NEWTRUE
    0x89: lambda r: r.push(False),  # NEWFALSE
    0x4A: lambda r: r.push(r.number(_I4)),  # BININT
    0x4B: lambda r: r.push(r.number(_U1)),  # BININT1
    0x4D: lambda r: r.push(r.number(_U2)),  # BININT2
    0x8A: lambda r: r.push(r.long(r.number(_U1))),  # LONG1
    0x47: lambda r: r.push(r.number(_F8)),  # BINFLOAT
    0x8C: lambda r: r.push(r.text(r.number(_U1))),  # SHORT_BINUNICODE
    0x58: lambda r: r.push(r.text(r.number(_U4))),  # BINUNICODE
    0x8D: lambda r: r.push(r.text(r.number(_U8))),  # BINUNICODE8
    0x43: lambda r: r.push(r.take(r.number(_U1))),  # SHORT_BINBYTES
    0x42: lambda r: r.push(r.take(r.number(_U4))),  # BINBYTES
    0x8E: lambda r: r.push(r.take(r.number(_U8))),  # BINBYTES8
    # Containers
    0x29: lambda r: r.push(()),  # EMPTY_TUPLE
    0x85: lambda r: r.tuple_of(1),  # TUPLE1
    0x86: lambda r: r.tuple_of(2),  # TUPLE2
    0x87: lambda r: r.tuple_of(3),  # TUPLE3
    0x28: lambda r: r.mark(),  # MARK
    0x74: lambda r: r.push(tuple(r.pop_marked())),  # TUPLE
    0x5D: lambda r: r.push([]),  # EMPTY_LIST
    0x61: lambda r: r.extend([r.pop()]),  # APPEND
    0x65: lambda r: r.extend(r.pop_marked()),  # APPENDS
    0x7D: lambda r: r.push({}),  # EMPTY_DICT
    0x73: lambda r: r.set_items([r.pop(), r.pop()][::-1]),  # SETITEM
    0x75: lambda r: r.set_items(r.pop_marked()),  # SETITEMS
    0x8F: lambda r: r.push([]),  # EMPTY_SET
    0x90: lambda r: r.extend(r.pop_marked()),  # ADDITEMS
    0x91: lambda r: r.push(r.pop_marked()),  # FROZENSET
    # Memo
    0x94: lambda r: r.remember(len(r.memo)),  # MEMOIZE
    0x71: lambda r: r.remember(r.number(_U1)),  # BINPUT
    0x72: lambda r: r.remember(r.number(_U4)),  # LONG_BINPUT
    0x68: lambda r: r.recall(r.number(_U1)),  # BINGET
    0x6A: lambda r: r.recall(r.number(_U4)),  # LONG_BINGET
    # Names and what is made of them
    0x63: lambda r: r.admit(r.line(), r.line()),  # GLOBAL
    0x93: lambda r: r.admit_from_stack(),  # STACK_GLOBAL
    0x52: lambda r: r.call(),  # REDUCE
    0x81: lambda r: r.call(),  # NEWOBJ; without __new__, an object is made as by a call
    0x62: lambda r: r.build(),  # BUILD
    0x51: lambda r: r.find_persistent(),  # BINPERSID
    # Frames are for reading ahead. Only their size is checked.
    0x95: lambda r: r.check_frame(r.number(_U8)),  # FRAME
}
