"""A table that names images by path or URL: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import posixpath
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from snellen.data.dataset import Dataset
from snellen.data.decode import BadImage
from snellen.data.files import is_local, is_url, locate, read_file, suffix_of, title_of
from snellen.data.labelling import labelled, row_numbers
from snellen.data.sources import EncodedImages
from snellen.errors import InvalidInput

NAME_COLUMNS = ("file_name", "path", "url", "image")
MASK_COLUMN = "mask_file_name"
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def open_table(files: AbstractFileSystem, path: str, label_column: str) -> Dataset:
    """A table whose rows name images; relative names start at the table's folder, URLs may lie anywhere.

    Unlike in a folder's metadata, names may lead outside: the user gave the table itself and vouches for it.
    """
    place = re.sub(r"[?#].*$", "", path) if is_url(path) else path
    folder, name = posixpath.split(place)
    table = parse_table(read_file(files, path), name, label_column)
    texts = [field.name for field in table.schema if field.type in (pa.string(), pa.large_string())]
    column = next((known for known in NAME_COLUMNS if known in texts and known != label_column), None)
    if column is None:
        raise InvalidInput(
            f"{name} has none of the text columns {', '.join(NAME_COLUMNS)} that name images; it has"
            f" {', '.join(table.column_names)}"
        )
    need_columns(name, table.column_names, label_column)
    names = pc.cast(table.column(column), pa.string())
    images = _named_images(files, folder, names)
    masks = None
    if MASK_COLUMN in table.column_names:
        masks = _named_images(files, folder, pc.cast(table.column(MASK_COLUMN), pa.string()))
    ids = pc.cast(table.column("id"), pa.string()) if "id" in table.column_names else _public_names(names)
    return labelled(title_of(path), drop_present(table, column, MASK_COLUMN), ids, label_column, images, masks)


def parse_table(content: bytes, name: str, label_column: str) -> pa.Table:
    """The rows of a table; labels and names stay texts as they are written. `name` tells the format by its suffix."""
    texts = (label_column, "id", MASK_COLUMN, *NAME_COLUMNS)
    buffer, suffix = pa.BufferReader(content), suffix_of(name)
    try:
        if suffix in (".csv", ".tsv"):
            parse = pa.csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), strings_can_be_null=True)
            return pa.csv.read_csv(buffer, parse_options=parse, convert_options=convert)
        return pq.read_table(buffer) if suffix == ".parquet" else pa.json.read_json(buffer)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"{name} cannot be read: {str(error).splitlines()[0]}") from error


def need_columns(name: str, present: list[str], *needed: str) -> None:
    """Raises InvalidInput that names the first missing column and those there are."""
    for column in needed:
        if column not in present:
            raise InvalidInput(f"{name} has no column {column!r}; it has {', '.join(present)}")


def drop_present(table: pa.Table, *columns: str) -> pa.Table:
    """The table without those of the columns that it has."""
    return table.drop_columns([column for column in columns if column in table.column_names])


def _named_images(files: AbstractFileSystem, folder: str, names: pa.ChunkedArray) -> EncodedImages:
    def read(position: int) -> bytes:
        name = names[position].as_py()
        if name is None or not name.strip():
            raise FileNotFoundError("no file is named")
        return read_file(*_place(files, folder, name))

    return EncodedImages(len(names), read)


def _place(files: AbstractFileSystem, folder: str, name: str) -> tuple[AbstractFileSystem, str]:
    """Where the image of one cell lies. A table from elsewhere does not reach into this machine's files."""
    if "::" in name or "\0" in name:
        raise BadImage("the name chains file systems or holds a zero byte; give a plain path or URL")
    if not is_url(name) and not posixpath.isabs(name):
        return files, f"{folder}/{name}" if folder else name
    try:
        place, path = locate(name)
    except InvalidInput as error:
        raise BadImage(str(error)) from error
    if is_local(place) and not is_local(files):
        raise BadImage("a table on a remote file system names a local file")
    return place, path


def _public_names(names: pa.ChunkedArray) -> pa.Array:
    """Ids from names: URLs lose credentials and query, and get their row's number where that makes them equal."""
    names = names.combine_chunks()
    is_address = pc.fill_null(pc.match_substring(names, "://"), False)
    plain = pc.replace_substring_regex(names, r"[?#].*$", "")
    plain = pc.if_else(is_address, pc.replace_substring_regex(plain, r"^([^:]+://)[^/@]*@", r"\1"), names)
    shortened = pc.fill_null(pc.not_equal(plain, names), False)
    short = plain.filter(shortened)
    if pc.count_distinct(short).as_py() == len(short):
        return plain
    numbered = pc.binary_join_element_wise(plain, row_numbers(len(plain)), "#")
    return pc.if_else(shortened, numbered, plain)
