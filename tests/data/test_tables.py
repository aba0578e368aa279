from __future__ import annotations

import functools
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from snellen.data import Dataset, Geometry, Loader, files, load_dataset
from snellen.data.labelling import labelled
from snellen.data.sources import EncodedImages
from snellen.errors import InvalidInput

SIZE = Geometry((8, 8))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def means(dataset: Dataset) -> list[int]:
    return [int(dataset.pixels(row, SIZE).float().mean()) for row in range(len(dataset))]


def usable(dataset: Dataset) -> Dataset:
    return Loader(dataset, SIZE).inspect().dataset


def write_table(path: Path, column: str, names: list[str]) -> None:
    rows = {column: names, "label": ["cat", "dog", "cat"], "site": ["a", "b", "c"]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
    elif path.suffix == ".jsonl":
        records = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows), *(mark.join(values) for values in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    remote = fsspec.filesystem("memory")
    yield remote
    if remote.exists("/bucket"):
        remote.rm("/bucket", recursive=True)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["file_name", "path", "url", "image"])
def test_tables_name_images_relative_absolute_and_by_url(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, suffix: str, column: str
) -> None:
    memory.pipe_file("/bucket/2.png", png(2))
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").write_bytes(png(1))
    table = tmp_path / "tables"
    table.mkdir()
    names = ["../0.png", str(tmp_path / "elsewhere/1.png"), "memory://bucket/2.png"]
    write_table(table / f"t{suffix}", column, names)
    dataset = load_dataset(str(table / f"t{suffix}"))
    assert means(dataset) == [0, 1, 2]
    assert list(dataset.ids) == names
    assert dataset.class_names == ("cat", "dog")
    assert dataset.attributes == ("site",)


def test_a_table_on_a_remote_file_system_names_its_neighbours(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/bucket/table.csv", b"file_name,label\nin/0.png,cat\nin/1.png,dog\n")
    for row in range(2):
        memory.pipe_file(f"/bucket/in/{row}.png", png(row))
    assert means(load_dataset("memory://bucket/table.csv")) == [0, 1]


def test_a_remote_table_does_not_reach_into_this_machine(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    (tmp_path / "secret.png").write_bytes(png(0))
    memory.pipe_file("/bucket/0.png", png(0))
    names = [
        "0.png",
        str(tmp_path / "secret.png"),
        f"file://{tmp_path}/secret.png",
        "simplecache::memory://bucket/0.png",
    ]
    rows = "".join(f"{name},cat\n" for name in names)
    memory.pipe_file("/bucket/table.csv", f"file_name,label\n{rows}".encode())
    dataset = usable(load_dataset("memory://bucket/table.csv"))
    assert list(dataset.ids) == ["0.png"]
    assert len(dataset.quarantine) == 3


def test_urls_in_a_folders_metadata_are_not_followed(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/bucket/0.png", png(0))
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\nmemory://bucket/0.png,cat\n")
    dataset = load_dataset(str(tmp_path))
    assert list(dataset.ids) == ["0.png"]
    assert "leaves the data folder" in dataset.quarantine[0].reason


@pytest.mark.parametrize("metadata", [True, False])
def test_folders_on_any_file_system(memory: fsspec.AbstractFileSystem, metadata: bool) -> None:
    for row, name in enumerate(("cat/0.png", "cat/deep/1.png", "dog/2.png", "dog/.hidden", "README.md")):
        memory.pipe_file(f"/bucket/photos/{name}", png(row))
    if metadata:
        content = b"file_name,label,site\ncat/0.png,cat,a\ncat/deep/1.png,cat,a\ndog/2.png,dog,b\n"
        memory.pipe_file("/bucket/photos/metadata.csv", content)
    dataset = load_dataset("memory://bucket/photos/")
    assert dataset.class_names == ("cat", "dog")
    assert list(dataset.ids) == ["cat/0.png", "cat/deep/1.png", "dog/2.png"]
    assert means(dataset) == [0, 1, 2]


class _Server(BaseHTTPRequestHandler):
    """`/ok.png` is an image, `/busy.png` one at the second attempt, everything else is forbidden or missing."""

    asked: dict[str, int]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked[path] = self.asked.get(path, 0) + 1
        status = {"/ok.png": 200, "/busy.png": 503 if self.asked[path] == 1 else 200, "/secret.png": 403}.get(path, 404)
        body = png(7) if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


def serve(handler: object) -> tuple[ThreadingHTTPServer, str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"127.0.0.1:{server.server_address[1]}"


def test_urls_are_read_tried_again_and_reported_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "RETRY_AFTER", (0.01, 0.01))
    asked: dict[str, int] = {}
    server, host = serve(type("Server", (_Server,), {"asked": asked}))
    try:
        names = [f"http://user:hunter2@{host}/{name}.png?token=s3cret" for name in ("ok", "busy", "secret", "gone")]
        rows = "".join(f"{name},cat\n" for name in names)
        (tmp_path / "t.csv").write_text(f"url,label\n{rows}http://127.0.0.1:1/off.png?token=s3cret,cat\n")
        dataset = usable(load_dataset(str(tmp_path / "t.csv")))
    finally:
        server.shutdown()
    assert list(dataset.ids) == [f"http://{host}/ok.png", f"http://{host}/busy.png"]
    reasons = {sample.id.rpartition("/")[2]: sample.reason for sample in dataset.quarantine}
    assert set(reasons) == {"secret.png", "gone.png", "off.png"}
    assert "403" in reasons["secret.png"]
    assert "missing" in reasons["gone.png"]
    assert "cannot be read" in reasons["off.png"]
    said = str(dataset.quarantine) + str(list(dataset.ids))
    assert "hunter2" not in said
    assert "s3cret" not in said
    assert asked["/secret.png"] == 1


def test_a_table_behind_http(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(5))
    (tmp_path / "t.csv").write_text("file_name,label\n0.png,cat\n")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    server, host = serve(functools.partial(quiet, directory=str(tmp_path)))
    try:
        assert means(load_dataset(f"http://{host}/t.csv?version=2")) == [5]
    finally:
        server.shutdown()


def test_urls_that_differ_in_the_query_alone_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,label\nmemory://b/i?n=1,cat\nmemory://b/i?n=2,cat\nplain.png,cat\n")
    assert list(load_dataset(str(tmp_path / "t.csv")).ids) == [
        "memory://b/i#00000000",
        "memory://b/i#00000001",
        "plain.png",
    ]


@pytest.mark.parametrize("name", ["", "\0", "~", "nonsense://x", "a" * 5000, "zip://a.png::b.zip", ".", "/dev/zero"])
def test_names_that_cannot_be_read_are_quarantined(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "x", "file_name": name, "label": "cat"}))
    dataset = usable(load_dataset(str(tmp_path / "t.jsonl")))
    assert len(dataset) == 0
    assert dataset.quarantine[0].id == "x"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.csv", "name,label\n0.png,cat\n", "none of the text columns file_name, path, url, image"),
        ("t.csv", "file_name,kind\n0.png,cat\n", "no column 'label'"),
        ("t.csv", "", "cannot be read"),
        ("t.jsonl", "{", "cannot be read"),
        ("t.parquet", "PAR1", "not a readable Parquet file"),
        ("t.xlsx", "x", "no known kind"),
    ],
)
def test_unreadable_tables_are_told_in_one_sentence(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        load_dataset(str(tmp_path / file))


@pytest.mark.parametrize("name", ["nonsense://bucket/t.csv", "ftpx:thing", "s4://user:hunter2@host/t.csv"])
def test_an_unknown_scheme_lists_what_is_accepted(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"hf:PATH:SPLIT, wds:PATTERN") as told:
        load_dataset(name)
    assert "hunter2" not in str(told.value)


def label(values: pa.Array, class_names: list[str] | None = None) -> Dataset:
    nothing = EncodedImages(len(values), lambda position: b"")
    ids = pa.array([str(row) for row in range(len(values))])
    return labelled("x", pa.table({"label": values}), ids, "label", nothing, class_names=class_names)


@pytest.mark.parametrize(
    ("values", "class_names", "labels"),
    [
        (pa.array([2, 10, 2]), ("2", "10"), [0, 1, 0]),
        (pa.array([2.0, float("nan"), 10.0]), ("2", "10"), [0, 1]),
        (pa.array(["b", None, " ", "a"]), ("a", "b"), [1, 0]),
        (pa.array([True, False]), ("False", "True"), [1, 0]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.nulls(2), (), []),
    ],
)
def test_labels_of_every_type(values: pa.Array, class_names: tuple[str, ...], labels: list[int]) -> None:
    dataset = label(values)
    assert dataset.class_names == class_names
    assert dataset.labels.tolist() == labels
    assert len(dataset) + len(dataset.quarantine) == len(values)


def test_given_class_names_match_indices_and_names() -> None:
    dataset = label(pa.array(["1", "cat", "7", "owl", "-1"]), ["cat", "dog"])
    assert dataset.labels.tolist() == [1, 0]
    assert len(dataset.quarantine) == 3


def test_labels_that_are_no_text_are_told() -> None:
    with pytest.raises(InvalidInput, match="--label-column"):
        label(pa.array([{"a": 1}]))
