"""A zip or tar archive as a folder: an index of byte ranges, read in place and never extracted."""

from __future__ import annotations

import posixpath
import re
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from snellen.data.dataset import Quarantined
from snellen.data.decode import BadImage
from snellen.data.files import stays_inside, title_of
from snellen.data.folders import METADATA_NAMES, Listing
from snellen.data.sources import EncodedImages
from snellen.data.tar import ByteRanges, tar_members
from snellen.errors import InvalidInput

_ARCHIVE_NAME = re.compile(r"\.(zip|tar|tgz|tar\.\w+)$", re.IGNORECASE)

MAX_MEMBER_BYTES = 1 << 30
"""A member that unfolds to more is taken for a bomb."""

_LOCAL_HEADER = 30
"""Bytes of a zip member's own header before its name, which the index repeats."""


def is_archive(path: str) -> bool:
    """Whether the name is a zip's or tar's; a compressed tar counts, to be refused with the reason."""
    return _ARCHIVE_NAME.search(path) is not None


class _Members(NamedTuple):
    """One entry a file: its name, where it starts, the bytes it takes and unfolds to, and whether it is deflated."""

    names: pa.Array
    offsets: np.ndarray
    stored: np.ndarray
    sizes: np.ndarray
    deflated: np.ndarray


class ArchiveFolder:
    """The files of an archive. A single folder that wraps everything else is stepped into.

    bad: members that are not read, and what is damaged.
    """

    def __init__(self, files: AbstractFileSystem, path: str) -> None:
        self.name = title_of(path)
        self._is_zip = path.lower().endswith(".zip")
        self._ranges = ByteRanges(files, [path])
        members, self.bad = (_zip_index if self._is_zip else _tar_index)(files, path)
        self._members = members._replace(names=_unwrapped(members.names))

    def holds(self, name: str) -> bool:
        return bool(self._last(pa.array([name]))[0].is_valid)

    def read(self, name: str) -> bytes:
        return self._content(self._last(pa.array([name]))[0].as_py())

    def subfolders(self) -> list[str]:
        return sorted(_tops(self._members.names))

    def listing(self) -> Listing:
        return Listing(self._members.names.unique(), [])

    def images(self, names: pa.Array | pa.ChunkedArray) -> EncodedImages:
        members = self._last(names)

        def read(position: int) -> bytes:
            member = members[position].as_py()
            if member is None:
                raise FileNotFoundError("no such member")
            return self._content(member)

        return EncodedImages(len(names), read)

    def _last(self, names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """The member of each name, null where there is none; of several the last, as unpacking would leave it."""
        backwards = pa.array(np.arange(len(self._members.names))[::-1])
        found = pc.index_in(names, value_set=self._members.names.take(backwards), skip_nulls=True)
        return pc.subtract(len(self._members.names) - 1, found)

    def _content(self, member: int) -> bytes:
        offset, stored, size = (int(column[member]) for column in self._members[1:4])
        if max(stored, size) > MAX_MEMBER_BYTES:
            raise BadImage(f"{max(stored, size):,} bytes is more than {MAX_MEMBER_BYTES:,}")
        if not self._is_zip:
            return self._ranges.read(0, offset, stored)
        header = self._ranges.read(0, offset, _LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\3\4"):
            raise BadImage("the zip is damaged where the file should start")
        start = offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
        content = self._ranges.read(0, start, stored)
        return _inflated(content, size) if self._members.deflated[member] else content


def _inflated(content: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)  # 0 would mean without limit
    except zlib.error as error:
        raise BadImage(f"the zip is damaged inside the file: {error}") from error


def _zip_index(files: AbstractFileSystem, path: str) -> tuple[_Members, list[Quarantined]]:
    bad = []
    names, rows = [], []
    try:
        with files.open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                link = (entry.external_attr >> 28) == 0xA  # the kind bits of a Unix mode
                packed = entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                if link or packed or entry.flag_bits & 1:
                    reason = "a link" if link else "packed with a method other than deflate" if packed else "encrypted"
                    bad.append(Quarantined(entry.filename, f"the archive member is {reason}, which is not read"))
                    continue
                deflated = entry.compress_type == zipfile.ZIP_DEFLATED
                names.append(entry.filename)
                places = (entry.header_offset, entry.compress_size, entry.file_size)
                offset, stored, size = (min(place, 1 << 62) for place in places)
                rows.append((offset, stored, size, deflated))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise InvalidInput(f"{posixpath.basename(path)} is not a readable zip archive: {error}") from error
    return _usable(names, rows, bad)


def _tar_index(files: AbstractFileSystem, path: str) -> tuple[_Members, list[Quarantined]]:
    bad: list[Quarantined] = []
    names, rows, damage = [], [], list[str]()
    with files.open(path, "rb") as stream:
        for member in tar_members(stream, path, damage):
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                bad.append(Quarantined(ascii(member.name)[1:-1], "the archive member is no regular file"))
                continue
            names.append(member.name.removeprefix("./"))
            rows.append((member.offset_data, member.size, member.size, False))
    bad += [Quarantined(posixpath.basename(path), reason) for reason in damage]
    return _usable(names, rows, bad)


def _usable(
    names: list[str], rows: list[tuple[int, int, int, bool]], bad: list[Quarantined]
) -> tuple[_Members, list[Quarantined]]:
    texts = pa.array([name.encode("utf-8", "replace").decode() for name in names], pa.string())
    inside = stays_inside(texts)
    useful = pc.and_not(inside, pc.starts_with(texts, "__MACOSX/"))
    reason = "the name of the archive member leaves the archive"
    bad += [Quarantined(name, reason) for name in texts.filter(pc.invert(inside)).to_pylist()]
    kept = np.array(rows, dtype=np.int64).reshape(-1, 4)[useful.to_numpy(zero_copy_only=False)]
    offsets, stored, sizes, deflated = np.ascontiguousarray(kept.T)
    return _Members(texts.filter(useful), offsets, stored, sizes, deflated.astype(bool)), bad


def _unwrapped(names: pa.Array) -> pa.Array:
    tops = _tops(names)
    slashes = pc.count_substring(names, "/").to_numpy(zero_copy_only=False)
    if len(tops) != 1 or slashes.min() == 0:
        return names
    tables = pa.array([f"{tops[0]}/{known}" for known in METADATA_NAMES])
    wraps = slashes.max() >= 2 or pc.any(pc.is_in(names, value_set=tables)).as_py()
    return pc.utf8_slice_codeunits(names, len(tops[0]) + 1) if wraps else names


def _tops(names: pa.Array) -> list[str]:
    tops: list[str] = pc.struct_field(pc.extract_regex(names, r"^(?P<top>[^/]+)/"), "top").unique().to_pylist()
    return [top for top in tops if top is not None]
