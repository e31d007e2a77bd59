"""Numbers of a run as a TensorBoard event file, written without TensorBoard.

The file is a sequence of records, each an `Event` of the protocol buffers in tensorflow/core/util/event.proto: length
(8 bytes), checksum of it, data, checksum of that (CRC-32C, masked as tensorflow/core/lib/io/record_writer.h says).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from odenet._errors import WriteError
from odenet._files import write_atomically
from odenet._jobs.train.checkpoint import Epoch

NAME = "events.out.tfevents.odenet"
_TAGS = {
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "rate": "lr",
    "certificate": "certificate",
    "memory/peak_bytes": "peak_bytes",
    "seconds": "seconds",
}


def begin(folder: Path, rows: tuple[Epoch, ...]) -> None:
    """Write the file anew with these rows: a record that was cut short by a kill would end it for a reader.

    Raises:
        WriteError: the folder cannot be written to.
    """
    started = rows[0].finished - rows[0].seconds if rows else 0.0
    content = _record(_event(started, 0, _field(3, b"brain.Event:2"))) + b"".join(map(_of_row, rows))
    write_atomically(folder / NAME, lambda file: file.write(content))


def add(folder: Path, row: Epoch) -> None:
    """Append an epoch: a TensorBoard that watches the file sees it at once.

    Raises:
        WriteError: the file cannot be written to.
    """
    try:
        with open(folder / NAME, "ab") as file:
            file.write(_of_row(row))
    except OSError as error:
        raise WriteError(
            f"{folder / NAME} cannot be written ({error.strerror or error})", "a folder to write to"
        ) from error


def _of_row(row: Epoch) -> bytes:
    values = {tag: getattr(row, name) for tag, name in _TAGS.items()}
    return _record(_event(row.finished, row.epoch, _summary({t: v for t, v in values.items() if v is not None})))


def _event(time: float, step: int, summary: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(step) + summary


def _summary(values: Mapping[str, float]) -> bytes:
    messages = (_field(1, tag.encode()) + b"\x15" + struct.pack("<f", value) for tag, value in values.items())
    return _field(5, b"".join(_field(1, value) for value in messages))


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    groups = []
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def _masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4), which no module of Python's own has."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))
