"""The pages of a parquet file by their headers: what they decode to is known before any of them is decoded.

A page header is a struct of Thrift's compact protocol. See parquet-format's `parquet.thrift` and Thrift's
`thrift-compact-protocol.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

#: Encodings whose values are no larger than their page, but for dictionaries: PLAIN, PLAIN_DICTIONARY, RLE
#: and RLE_DICTIONARY. Of the others DELTA_BYTE_ARRAY can repeat a long text in a few bits.
ENCODINGS = {0, 2, 3, 8}

#: Kinds of pages.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3

#: Thrift's types of fields.
_STOP, _TRUE, _FALSE, _BYTE, _I32, _DOUBLE, _BINARY, _LIST, _STRUCT = 0, 1, 2, 3, 5, 7, 8, 9, 12
_INTEGERS = {4, 5, 6}

#: Page headers have three levels, footers nine with their lists, and the columns in them three.
_DEEPEST = 12

#: The list of a footer's columns, and the number of columns in one, by the numbers of their fields.
_SCHEMA, _CHILDREN = 2, 5


@dataclass(frozen=True)
class Decoded:
    """What the pages of a file hold before dictionaries are looked up."""

    #: Values of all columns, nulls and the levels of empty lists included.
    values: int
    #: Bytes of all pages without their compression.
    bytes: int


def measure(content: bytes, metadata: pq.FileMetaData) -> Decoded:
    """Adds up the pages of all columns.

    Raises ValueError for column chunks that overlap or lie outside the file, an encoding that none of our
    writers uses, and a page whose header cannot be read.
    """
    values = size = encoded = 0
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            start, length = _range(chunk)
            encoded += length
            if start < 0 or length < 0 or start + length > len(content) or encoded > len(content):
                raise ValueError(f"column {chunk.path_in_schema} lies outside the file, or over another")
            of_chunk = _measure_chunk(content, start, start + length)
            values, size = values + of_chunk.values, size + of_chunk.bytes
    return Decoded(values, size)


def check_depth(footer: bytes) -> None:
    """Raises ValueError for columns within columns, many levels deep, over which pyarrow ends the process."""
    left: list[int] = []
    for column in _Reader(footer, 0, len(footer)).lists_of(_SCHEMA):
        while left and not left[-1]:
            left.pop()
        if left:
            left[-1] -= 1
        if column.get(_CHILDREN, 0) > 0:
            left.append(column[_CHILDREN])
        if len(left) > _DEEPEST:
            raise ValueError("its columns are nested too deep")


def _range(chunk: Any) -> tuple[int, int]:
    """Where pyarrow reads a column chunk: its first byte, and how many."""
    start = chunk.data_page_offset
    dictionary = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return (dictionary if dictionary and dictionary < start else start), chunk.total_compressed_size


def _measure_chunk(content: bytes, place: int, end: int) -> Decoded:
    values = size = 0
    while place < end:
        header, place = _Reader(content, place, end).struct()
        try:
            kind, decoded, encoded = header[1], header[2], header[3]
            page = header[{_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}[kind]]
            count, encoding = page[1], page[4 if kind == _DATA_V2 else 2]
        except (KeyError, TypeError) as error:
            raise ValueError("a page has no header of its kind") from error
        if min(decoded, encoded, count) < 0 or encoded > end - place:
            raise ValueError("a page is cut, or of negative size")
        if encoding not in ENCODINGS:
            raise ValueError(f"a page has encoding {encoding}, which no writer of packs uses")
        values, size, place = values + count, size + decoded, place + encoded
    return Decoded(values, size)


class _Reader:
    """Reads a struct: its 32-bit integers and structs by the numbers of their fields.

    Of fields with one number the last counts, as in pyarrow. Raises ValueError for what is cut, or too deep.
    """

    def __init__(self, content: bytes, place: int, end: int) -> None:
        self._content, self._place, self._end = content, place, end

    def struct(self, depth: int = 0) -> tuple[dict[int, Any], int]:
        """The fields, and where the struct ends."""
        if depth > _DEEPEST:
            raise ValueError("a header is nested too deep")
        fields: dict[int, Any] = {}
        for number, kind in self._fields():
            if kind == _I32:
                fields[number] = self._integer()
            elif kind == _STRUCT:
                fields[number], _ = self.struct(depth + 1)
            else:
                self._skip(kind, depth)
        return fields, self._place

    def _fields(self) -> Iterator[tuple[int, int]]:
        """The number and kind of each field of a struct. Each has to be read before the next one."""
        number = 0
        while (head := self._byte()) & 15 != _STOP:
            kind, step = head & 15, head >> 4
            number = number + step if step else self._integer()
            if not 0 < number < 2**15:
                raise ValueError("a header has a field that no struct has")
            yield number, kind

    def lists_of(self, wanted: int) -> Iterator[dict[int, Any]]:
        """The structs in the lists at a field of this number, which a file may have several times."""
        for number, kind in self._fields():
            if (number, kind) != (wanted, _LIST):
                self._skip(kind, 0)
                continue
            inner, count = self._list()
            for _ in range(count):
                if inner == _STRUCT:
                    yield self.struct(1)[0]
                else:
                    self._skip_item(inner, 0)

    def _list(self) -> tuple[int, int]:
        """Of what kind a list's items are, and how many there are."""
        head = self._byte()
        return head & 15, head >> 4 if head >> 4 < 15 else self._varint()

    def _skip_item(self, kind: int, depth: int) -> None:
        """Passes over an item of a list, where a truth takes a byte."""
        if kind in (_TRUE, _FALSE):
            self._advance(1)
        else:
            self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        """Passes over a field, whatever it holds."""
        if kind in (_TRUE, _FALSE):
            return
        if kind == _STRUCT:
            self.struct(depth + 1)
        elif kind in _INTEGERS:
            self._integer()
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            self._advance({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._varint())
        elif kind == _LIST and depth <= _DEEPEST:
            inner, count = self._list()
            for _ in range(count):
                self._skip_item(inner, depth + 1)
        else:
            # Neither page headers nor footers have sets or maps.
            raise ValueError("a header has a field of an unknown type")

    def _byte(self) -> int:
        self._advance(1)
        return self._content[self._place - 1]

    def _advance(self, count: int) -> None:
        if count > self._end - self._place:
            raise ValueError("a header is cut")
        self._place += count

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            if (shift := shift + 7) > 63:
                raise ValueError("a header has a number that is too long")
        return value | byte << shift

    def _integer(self) -> int:
        """A zigzag varint."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)
