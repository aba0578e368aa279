"""WebDataset shards: tar files whose members with one base name make a sample."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from snellen.data.dataset import Dataset, Quarantined
from snellen.data.files import distinct_stems, expand, locate, read_file, without_secrets
from snellen.data.labelling import labelled
from snellen.data.shard_index import ShardIndex, index_shard, join_rows
from snellen.data.sources import EncodedImages
from snellen.data.tar import ByteRanges
from snellen.errors import InvalidInput

CLASS_FILES = ("class_names.json", "classes.txt", "classnames.txt")
MOST_SHARDS = 1_000_000
"""Braces that expand to more are taken for a slip."""


def open_shards(patterns: str, label_column: str) -> Dataset:
    """Patterns with `{000..009}`, `{a,b}` and wild cards, `::` between several, all on one file system.

    Every shard's headers are read once; images are byte ranges of the shards from then on.
    """
    files, paths = _shards(patterns)
    with ThreadPoolExecutor(8, thread_name_prefix="index") as pool:
        shards = list(pool.map(lambda path: index_shard(files, path, label_column), paths))
    stems = distinct_stems(paths)
    counts = [len(shard.keys) for shard in shards]
    shard_of = np.repeat(np.arange(len(shards)), counts)
    keys = [pc.binary_join_element_wise(stem, shard.keys, "/") for stem, shard in zip(stems, shards, strict=True)]
    places = np.concatenate([shard.places for shard in shards])
    ranges = ByteRanges(files, paths)
    return labelled(
        posixpath.basename(posixpath.dirname(paths[0])) or stems[0],
        join_rows([shard.table for shard in shards]),
        pa.chunked_array(keys, pa.string()),
        label_column,
        _members(ranges, shard_of, places[:, :2]),
        _members(ranges, shard_of, places[:, 2:]) if (places[:, 2] >= 0).any() else None,
        _quarantine(stems, shards),
        _class_names(files, posixpath.dirname(paths[0])),
        tuple(f"shard {stem}: {note}" for stem, shard in zip(stems, shards, strict=True) for note in shard.warnings),
    )


def _members(ranges: ByteRanges, shard_of: np.ndarray, places: np.ndarray) -> EncodedImages:
    def read(position: int) -> bytes:
        offset, size = (int(number) for number in places[position])
        if offset < 0:
            raise FileNotFoundError("no such member")
        return ranges.read(int(shard_of[position]), offset, size)

    return EncodedImages(len(places), read)


def _quarantine(stems: Sequence[str], shards: Sequence[ShardIndex]) -> list[Quarantined]:
    return [
        Quarantined(f"{stem}/{entry.id}" if entry.id else stem, entry.reason)
        for stem, shard in zip(stems, shards, strict=True)
        for entry in shard.bad
    ]


def _shards(patterns: str) -> tuple[AbstractFileSystem, list[str]]:
    """The shards in the order given, each once."""
    if patterns.startswith("pipe:"):
        raise InvalidInput("data wds:pipe: would run a command; give the address that the command reads, as s3://")
    every = (address for pattern in patterns.split("::") for address in expand_braces(pattern))
    addresses = list(islice(every, MOST_SHARDS))
    places = [locate(address) for address in addresses]
    if len({id(files) for files, _ in places}) > 1:
        raise InvalidInput("data wds: names shards on several file systems; give those of one")
    files = places[0][0]
    paths = list(dict.fromkeys(path for _, pattern in places for path in expand(files, pattern)))
    missing = [path for path in paths if not files.exists(path)]
    if not paths or missing:
        first = without_secrets(missing[0] if missing else patterns)
        raise InvalidInput(f"data wds: finds no shard {first!r} ({len(missing)} of {len(paths)} are missing)")
    return files, paths


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` and `{train,test}.tar` as the names they stand for."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    for choice in _choices(braces[1]):
        yield from expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _choices(inside: str) -> Iterator[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        yield from inside.split(",")
        return
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < MOST_SHARDS:
        raise InvalidInput(f"braces {{{inside}}} in data wds: must count up, to {MOST_SHARDS:,} shards at most")
    width = len(numbers[1])
    yield from (f"{number:0{width}d}" for number in range(first, last + 1))


def _class_names(files: AbstractFileSystem, folder: str) -> list[str] | None:
    """Names from a file beside the shards: a JSON list, or a name a line."""
    found = next((f"{folder}/{name}" for name in CLASS_FILES if files.isfile(f"{folder}/{name}")), None)
    if found is None:
        return None
    try:
        text = read_file(files, found).decode()
        names = json.loads(text) if found.endswith(".json") else text.splitlines()
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{posixpath.basename(found)} beside the shards cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"{posixpath.basename(found)} beside the shards must be a list of names")
    return [name.strip() for name in names if name.strip()]
