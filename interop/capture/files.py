"""Capture files on disk: opened, decompressed, and read as the streams of their connections.

A thin shell over `pcapng`, `packets` and `reassembly`. It adds what needs a file or a count: one
clear line for what cannot be opened, gzip, and the numbers of damaged packets.

A file is read in chunks of 512 KiB, and gzip is undone a chunk at a time, so memory is
bounded by open connections and not by the file, however well it was compressed. Larger chunks
fall out of the processor's own memory between the three times they are gone over (1 MiB: 0.29 s
in place of 0.26 for 200 MB), and smaller ones make for shorter runs of data.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from interop.capture.encapsulation import NotRead
from interop.capture.fragments import FragmentBuffer
from interop.capture.items import (
    MAXIMUM_BLOCK_BYTES,
    DamagedBlock,
    DecryptionSecrets,
    NotACapture,
    PacketBatch,
)
from interop.capture.packets import parse_tcp_batch
from interop.capture.pcapng import CaptureReader
from interop.capture.reassembly import Reassembler
from interop.capture.streams import StreamEvent
from interop.capture.writer import PcapngWriter
from interop.errors import DissectError, InputError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

__all__ = ["CaptureEvent", "CaptureProblem", "embed_secrets", "read_streams"]

_CHUNK_BYTES: Final = 512 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"
_PROBLEMS_NAMED: Final = 20
_SECTION_MARKS: Final = b"\x0a\x0d\x0d\x0a\x4d\x3c\x2b\x1a"  # block type, byte order
_SECTION_HEAD_BYTES: Final = 12
_INTERFACE_MARK: Final = b"\1\0\0\0"


class CaptureProblem(NamedTuple):
    """Something in a capture that could not be used; the rest was.

    `packet_number` counts from 1, as Wireshark does; None where it is not about one packet.
    """

    packet_number: int | None
    message: str


CaptureEvent: TypeAlias = StreamEvent | DecryptionSecrets | CaptureProblem


def read_streams(
    path: Path | str, reassembler: Reassembler | None = None
) -> Iterator[CaptureEvent]:
    """Yield what a pcapng or pcap file, gzip'd or not, says about its TCP connections.

    The file is opened when iteration begins; then `InputError` is raised for one that cannot be
    opened, is empty, or is not a capture. Damage further on is yielded as `CaptureProblem`, the
    first 20 packets one by one and the others as a count; packets in tunnels that are not read, as
    a count alone. `reassembler` brings other bounds than the usual ones.
    """
    reading = _Reading(reassembler or Reassembler())
    with _open_capture(Path(path)) as file:
        try:
            for chunk in _chunks(file):
                yield from reading.feed(chunk)
            yield from reading.finish()
        except NotACapture as error:
            raise InputError(f"{path}: {error.message}") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None


class _Reading:
    """One capture on its way from chunks to events."""

    def __init__(self, reassembler: Reassembler) -> None:
        self._reassembler = reassembler
        self._reader = CaptureReader()
        self._fragments = FragmentBuffer()
        self._packet_number = 0
        self._damaged_packets = 0
        self._packets_not_read = Counter[str]()  # by what they are encapsulated in
        self._broken_off = False

    def feed(self, chunk: bytes | CaptureProblem) -> list[CaptureEvent]:
        """Return the events of a chunk; after damage that ends the reading, there are none."""
        if self._broken_off:
            return []
        if isinstance(chunk, CaptureProblem):
            if not self._reader.format:
                raise NotACapture(chunk.message, offset=0, path="capture")
            self._broken_off = True
            return [chunk]
        try:
            items = self._reader.feed_batches(chunk)
        except NotACapture:
            raise
        except DissectError as error:
            self._broken_off = True
            return [CaptureProblem(None, str(error))]
        events: list[CaptureEvent] = []
        for item in items:
            if isinstance(item, PacketBatch):
                self._take_packets(item, events)
            elif isinstance(item, DamagedBlock):
                self._packet_number += item.is_packet
                self._report(self._packet_number, item.error, events)
            else:
                events.append(item)
        return events

    def _take_packets(self, batch: PacketBatch, events: list[CaptureEvent]) -> None:
        first = self._packet_number + 1
        self._packet_number += len(batch.frames)

        def report(index: int, error: DissectError) -> None:
            self._report(first + index, error, events)

        segments = parse_tcp_batch(batch, self._fragments, report)
        events += self._reassembler.feed_all(segments, batch.timestamp_ns)

    def finish(self) -> list[CaptureEvent]:
        """Return what the end of the capture makes certain."""
        events: list[CaptureEvent] = []
        if not self._broken_off:
            try:
                left_bytes = self._reader.finish()
            except NotACapture:
                raise
            except DissectError as error:  # found in the last chunk, behind usable packets
                events.append(CaptureProblem(None, str(error)))
            else:
                if left_bytes:
                    message = f"the file ends within a packet, after {left_bytes} of its bytes"
                    events.append(CaptureProblem(None, message))
        if self._damaged_packets > _PROBLEMS_NAMED:
            more = self._damaged_packets - _PROBLEMS_NAMED
            events.append(CaptureProblem(None, f"{more} more packets could not be used"))
        if self._packets_not_read:
            counts = sorted(self._packets_not_read.items())
            names = ", ".join(f"{name} ({count})" for name, count in counts)
            message = f"packets in encapsulations that are not read were passed over: {names}"
            events.append(CaptureProblem(None, message))
        ignored = self._reassembler.ignored_segments
        if ignored:
            message = f"{ignored} segments have sequence numbers of no stream and were not used"
            events.append(CaptureProblem(None, message))
        events += self._reassembler.finish()
        return events

    def _report(self, number: int, error: DissectError, events: list[CaptureEvent]) -> None:
        if isinstance(error, NotRead):
            self._packets_not_read[error.message] += 1
            return
        self._damaged_packets += 1
        if self._damaged_packets <= _PROBLEMS_NAMED:
            events.append(CaptureProblem(number, str(error)))


@contextmanager
def _open_capture(path: Path) -> Iterator[io.BufferedReader]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{str(path)!r}: not a possible file name") from None
    with file:
        yield file


def _chunks(file: io.BufferedReader) -> Iterator[bytes | CaptureProblem]:
    """Yield the file's chunks, decompressed, and last a problem if decompression met one."""
    if not file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
        return
    parts: list[bytes] = []
    with gzip.GzipFile(fileobj=file) as decompressed:
        while True:
            # read1 stops at what one piece of input gives, so that nothing which was undone
            # before a damaged place is lost with it.
            try:
                part = decompressed.read1(_CHUNK_BYTES)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                yield b"".join(parts)
                yield CaptureProblem(None, f"the gzip data is damaged: {error}")
                return
            parts.append(part)
            if not part or sum(map(len, parts)) >= _CHUNK_BYTES:
                yield b"".join(parts)
                parts = []
            if not part:
                return


def embed_secrets(source: Path | str, target: Path | str, key_log: bytes) -> None:
    """Write `source` to `target` with a Decryption Secrets Block before its packets.

    There a reader that makes one pass finds the keys in time. `target`, which may be `source`,
    appears whole or not at all, with mode 0600. Raises `InputError` unless `source` is a
    little-endian pcapng file, as the recorder writes.
    """
    source, target = Path(source), Path(target)
    with _open_capture(source) as file:
        head = _blocks_before_packets(file)
        if head is None:
            raise InputError(f"{source}: not a little-endian pcapng file; editcap makes one of it")
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as output:
                output.write(head)
                output.write(PcapngWriter().secrets(key_log))
                shutil.copyfileobj(file, output, _CHUNK_BYTES)
                output.flush()
                os.fsync(output.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _blocks_before_packets(file: io.BufferedReader) -> bytes | None:
    """Read the section header and the interface descriptions that follow it at once.

    Wireshark's own tools look for interfaces before anything else, and give up on a file that
    has secrets there. None is returned for what is not little-endian pcapng.
    """
    blocks = [file.read(_SECTION_HEAD_BYTES)]
    if blocks[0][:4] + blocks[0][8:] != _SECTION_MARKS:
        return None
    length = int.from_bytes(blocks[0][4:8], "little") - _SECTION_HEAD_BYTES
    while 0 <= length <= MAXIMUM_BLOCK_BYTES:
        blocks.append(file.read(length))
        following = file.peek(8)[:8]
        if not following.startswith(_INTERFACE_MARK):
            return b"".join(blocks)
        length = int.from_bytes(following[4:], "little")
        if not length:
            return None
    return None
