"""Results of an attack on captures, on disk: a capture can hold more sessions than memory should.

A result is written down, as JSON, when its session has ended; what stays in memory is where,
sixteen bytes a session. They come back in the order of captures and streams, which is not the order
in which they came. The first few mebibytes are not written at all: most captures have few sessions.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interop.proof.attack import AttackedSession

__all__ = ["ResultFile"]

_KEPT_IN_MEMORY_BYTES: Final = 4 * 1024 * 1024
_STREAM_BITS: Final = 48


class ResultFile(Collection["AttackedSession"]):
    """The results of sessions, in the order of captures and streams; `opened` counts those."""

    def __init__(self, kind: type[AttackedSession]) -> None:
        self.opened = 0
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(kind).decode
        self._file = tempfile.SpooledTemporaryFile(_KEPT_IN_MEMORY_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # which deletes it
        self._at_end = True
        self._keys = array("Q")  # capture and stream
        self._starts = array("Q", [0])  # of each result, and of the next one

    def add(self, capture_number: int, result: AttackedSession) -> None:
        """Write a result down."""
        encoded = self._encode(result)
        if not self._at_end:  # for a place in a file is looked for on disk, each time
            self._file.seek(self._starts[-1])
            self._at_end = True
        self._file.write(encoded)
        self._keys.append(capture_number << _STREAM_BITS | result.stream)
        self._starts.append(self._starts[-1] + len(encoded))
        self.opened += result.opened

    def encoded(self) -> Iterator[bytes]:
        """Yield each result as it was written down: JSON in one line."""
        for index in sorted(range(len(self._keys)), key=self._keys.__getitem__):
            start = self._starts[index]
            self._at_end = False
            self._file.seek(start)
            yield self._file.read(self._starts[index + 1] - start)

    def __iter__(self) -> Iterator[AttackedSession]:
        return map(self._decode, self.encoded())

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, result: object) -> bool:
        return any(each == result for each in self)
