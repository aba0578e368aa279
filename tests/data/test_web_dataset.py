from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image

from snellen.data import Dataset, Geometry, Loader, load_dataset
from snellen.errors import InvalidInput

SIZE = Geometry((8, 8))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def two_shards(folder: Path) -> None:
    for number in range(2):
        members = {}
        for row in range(3):
            members[f"{row:03d}.png"] = png(100 * number + 10 * row)
            members[f"{row:03d}.cls"] = str(row % 2).encode()
        (folder / f"shard-{number:06d}.tar").write_bytes(shard(members))


def means(dataset: Dataset) -> list[int]:
    return [int(dataset.pixels(row, SIZE).float().mean()) for row in range(len(dataset))]


@pytest.mark.parametrize(
    "pattern", ["shard-{000000..000001}.tar", "shard-*.tar", "shard-000000.tar::{0}/shard-000001.tar"]
)
def test_shards_by_braces_wild_cards_and_lists(tmp_path: Path, pattern: str) -> None:
    two_shards(tmp_path)
    dataset = load_dataset(f"wds:{tmp_path}/{pattern.replace('{0}', str(tmp_path))}")
    assert means(dataset) == [0, 10, 20, 100, 110, 120]
    assert next(iter(dataset.ids)) == "shard-000000/000"
    assert len(set(dataset.ids)) == 6
    assert dataset.labels.tolist() == [0, 1, 0, 0, 1, 0]
    assert not dataset.named_classes


def test_what_webdatasets_own_writer_wrote_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for row in range(3):
            pixels = np.full((8, 8, 3), 50 * row, dtype=np.uint8)
            sink.write({"__key__": f"x/{row}", "png": pixels, "cls": row, "json": {"site": "north", "depth": row}})
    dataset = load_dataset(f"wds:{tmp_path}/a.tar")
    assert means(dataset) == [0, 50, 100]
    assert dataset.attributes == ("site", "depth")
    assert list(dataset.ids) == ["a/x/0", "a/x/1", "a/x/2"]


@pytest.mark.parametrize(("name", "content"), [("classes.txt", "cat\ndog\n"), ("class_names.json", '["cat", "dog"]')])
def test_integers_get_their_names_from_a_file_beside_the_shards(tmp_path: Path, name: str, content: str) -> None:
    two_shards(tmp_path)
    (tmp_path / name).write_text(content)
    dataset = load_dataset(f"wds:{tmp_path}/shard-*.tar")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.named_classes


def test_shards_on_another_file_system(tmp_path: Path) -> None:
    two_shards(tmp_path)
    remote = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.tar"):
        remote.pipe_file(f"/shards-test/{path.name}", path.read_bytes())
    try:
        dataset = load_dataset("wds:memory://shards-test/shard-{000000..000001}.tar")
        assert means(dataset) == [0, 10, 20, 100, 110, 120]
    finally:
        remote.rm("/shards-test", recursive=True)


def test_json_labels_attributes_and_masks(tmp_path: Path) -> None:
    described = [{"species": "cat", "light": "day", "age": 1, "nested": {}}, {"species": "dog", "age": 2.5, "odd": 1}]
    members = {}
    for row, content in enumerate(described):
        members[f"{row}.json"] = json.dumps(content).encode()
        members[f"{row}.jpg"] = png(row)
    members["1.mask.png"] = png(255)
    (tmp_path / "a.tar").write_bytes(shard(members))
    dataset = load_dataset(f"wds:{tmp_path}/a.tar", label_column="species")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.table.column("age").to_pylist() == [1.0, 2.5]
    assert dataset.table.column("light").to_pylist() == ["day", None]
    assert not dataset.mask(0, SIZE).any()
    assert dataset.mask(1, SIZE).all()


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path) -> None:
    members = [("a.cls", b"cat"), ("b.cls", b"dog"), ("b.png", png(1)), ("a.png", png(0))]
    (tmp_path / "a.tar").write_bytes(shard(members))
    dataset = load_dataset(f"wds:{tmp_path}/a.tar")
    assert dict(zip(dataset.ids, dataset.labels.tolist(), strict=True)) == {"a/a": 0, "a/b": 1}


def test_a_key_under_texts_and_numbers_becomes_text(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", "one")):
        content = json.dumps({"label": "cat", "n": value}).encode()
        (tmp_path / f"{name}.tar").write_bytes(shard({"0.png": png(0), "0.json": content}))
    assert load_dataset(f"wds:{tmp_path}/*.tar").table.column("n").to_pylist() == ["1", "one"]


def test_links_devices_and_names_that_leave_are_quarantined_and_nothing_is_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("0.png", tarfile.SYMTYPE), ("1.png", tarfile.LNKTYPE), ("2.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("../3.png", "/4.png", "a/../../5.png", "good.png", "good.cls"):
            content = b"cat" if name.endswith("cls") else png(9)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.tar").write_bytes(buffer.getvalue())
    dataset = load_dataset(f"wds:{inner}/a.tar")
    assert list(dataset.ids) == ["a/good"]
    assert means(dataset) == [9]
    assert len(dataset.quarantine) == 6
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "inner"]


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 2000, 4000, 5500])
def test_a_truncated_shard_gives_what_comes_before_the_damage(tmp_path: Path, cut: int) -> None:
    members = {}
    for row in range(3):
        members[f"{row}.cls"] = b"cat"
        members[f"{row}.png"] = png(10 * row)
    whole = shard(members)
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    dataset = Loader(load_dataset(f"wds:{tmp_path}/a.tar"), SIZE).inspect().dataset
    complete = [row for row in range(3) if 1024 + 2048 * row + 512 + len(png(10 * row)) <= cut]
    assert means(dataset) == [10 * row for row in complete]
    assert any("damaged at byte" in sample.reason for sample in dataset.quarantine)
    assert dataset.warnings


def test_noise_in_the_middle_of_a_shard_is_told(tmp_path: Path) -> None:
    whole = bytearray(shard({"0.png": png(0), "0.cls": b"cat", "1.png": png(1), "1.cls": b"cat"}))
    whole[2048:2560] = bytes(range(256)) * 2
    (tmp_path / "a.tar").write_bytes(whole)
    dataset = load_dataset(f"wds:{tmp_path}/a.tar")
    assert list(dataset.ids) == ["a/0"]
    assert any("damaged" in sample.reason for sample in dataset.quarantine)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "a.tar", f"w:{mode}") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(InvalidInput, match="compressed"):
        load_dataset(f"wds:{tmp_path}/a.tar")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("pipe:touch {0}/ran", "would run a command"),
        ("{0}/nothing-*.tar", "finds no shard"),
        ("{0}/shard-{{000000..000002}}.tar", r"shard-000002\.tar.*1 of 3"),
        ("{0}/{{9..0}}.tar", "count up"),
        ("nonsense://a.tar", "not an address"),
    ],
)
def test_wrong_patterns_are_told_in_one_sentence(tmp_path: Path, pattern: str, message: str) -> None:
    two_shards(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        load_dataset("wds:" + pattern.format(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_unusable_samples_are_quarantined_with_their_reasons(tmp_path: Path) -> None:
    members = {
        "ok.png": png(0),
        "ok.cls": b"cat",
        "unlabelled.png": png(0),
        "broken.png": png(0)[:-30],
        "broken.cls": b"cat",
        "json.png": png(0),
        "json.json": b"{",
        "alone.cls": b"cat",
        "latin.png": png(0),
        "latin.cls": b"\xe9",
    }
    (tmp_path / "a.tar").write_bytes(shard(members))
    dataset = Loader(load_dataset(f"wds:{tmp_path}/a.tar"), SIZE).inspect().dataset
    assert list(dataset.ids) == ["a/ok"]
    assert {sample.id for sample in dataset.quarantine} == {"a/unlabelled", "a/broken", "a/json", "a/alone", "a/latin"}
