from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from snellen.data import Dataset, Geometry, Loader, load_dataset
from snellen.errors import InvalidInput

SIZE = Geometry((8, 8))
CLASSES = {"cat/0.png": 0, "cat/deep/1.png": 1, "dog/2.png": 2}
TABLE = b"file_name,label,mask_file_name\nin/0.png,cat,in/9.png\nin/1.png,dog,\nin/gone.png,dog,\n../x.png,dog,\n"


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for index, (name, content) in enumerate(members):
                packed.writestr(name, content, (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)[index % 2])
    else:
        with tarfile.open(path, "w") as packed_tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                packed_tar.addfile(info, io.BytesIO(content))
    return path


def means(dataset: Dataset) -> list[int]:
    return [int(dataset.pixels(row, SIZE).float().mean()) for row in range(len(dataset))]


both = pytest.mark.parametrize("kind", ["zip", "tar"])


@both
@pytest.mark.parametrize("wrapped", ["", "photos/"])
def test_class_folders_in_an_archive(tmp_path: Path, kind: str, wrapped: str) -> None:
    members = [(wrapped + name, png(value)) for name, value in CLASSES.items()]
    members += [("__MACOSX/cat/._0.png", b"x"), (f"{wrapped}dog/.DS_Store", b"x")]
    dataset = load_dataset(str(archive(tmp_path / f"photos.{kind}", members)))
    assert dataset.class_names == ("cat", "dog")
    assert list(dataset.ids) == list(CLASSES)
    assert means(dataset) == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [f"photos.{kind}"]


@both
@pytest.mark.parametrize("wrapped", ["", "photos/"])
def test_metadata_in_an_archive(tmp_path: Path, kind: str, wrapped: str) -> None:
    content = [("metadata.csv", TABLE), ("in/0.png", png(0)), ("in/1.png", png(1)), ("in/9.png", png(255))]
    path = archive(tmp_path / f"p.{kind}", [(wrapped + name, body) for name, body in content])
    dataset = Loader(load_dataset(str(path)), SIZE).inspect().dataset
    assert means(dataset) == [0, 1]
    assert dataset.mask(0, SIZE).all()
    assert not dataset.mask(1, SIZE).any()
    assert {sample.id: sample.reason for sample in dataset.quarantine} == {
        "in/gone.png": "the file is missing",
        "../x.png": "the file name is empty or leaves the data folder",
    }


@both
def test_an_archive_on_another_file_system(tmp_path: Path, kind: str) -> None:
    path = archive(tmp_path / f"p.{kind}", [(name, png(value)) for name, value in CLASSES.items()])
    remote = fsspec.filesystem("memory")
    remote.pipe_file(f"/archives/p.{kind}", path.read_bytes())
    try:
        assert means(load_dataset(f"memory://archives/p.{kind}")) == [0, 1, 2]
    finally:
        remote.rm("/archives", recursive=True)


@both
@pytest.mark.parametrize("name", ["../cat/9.png", "/cat/9.png", "cat/../../9.png", "cat\\..\\..\\9.png"])
def test_names_that_leave_the_archive_are_quarantined(tmp_path: Path, kind: str, name: str) -> None:
    members = [*((good, png(value)) for good, value in CLASSES.items()), (name, png(9))]
    dataset = load_dataset(str(archive(tmp_path / f"p.{kind}", members)))
    assert means(dataset) == [0, 1, 2]
    assert [sample.id for sample in dataset.quarantine] == [name]


def test_links_in_a_tar_are_quarantined(tmp_path: Path) -> None:
    with tarfile.open(archive(tmp_path / "p.tar", [("cat/0.png", png(0))]), "a") as packed:
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(info)
    dataset = load_dataset(str(tmp_path / "p.tar"))
    assert list(dataset.ids) == ["cat/0.png"]
    assert dataset.quarantine[0].id == "cat/link.png"


def test_links_encrypted_and_oddly_packed_members_of_a_zip_are_quarantined(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        packed.writestr("cat/0.png", png(0))
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("cat/odd.png", png(0), zipfile.ZIP_BZIP2)
    dataset = load_dataset(str(tmp_path / "p.zip"))
    assert list(dataset.ids) == ["cat/0.png"]
    assert {sample.id for sample in dataset.quarantine} == {"cat/link.png", "cat/odd.png"}


def test_a_zip_that_promises_less_than_it_unfolds_to_is_not_believed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("cat/0.png", bytes(50_000_000))
    content = (tmp_path / "p.zip").read_bytes().replace((50_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "p.zip").write_bytes(content)
    dataset = load_dataset(str(tmp_path / "p.zip"))
    assert len(dataset.images._read(0)) <= 11  # type: ignore[attr-defined]
    assert len(Loader(dataset, SIZE).inspect().dataset.quarantine) == 1


@both
def test_of_a_member_that_comes_twice_the_last_counts(tmp_path: Path, kind: str) -> None:
    members = [("cat/0.png", png(1)), ("dog/1.png", png(2)), ("cat/0.png", png(3))]
    with warnings.catch_warnings(action="ignore"):  # zipfile warns of the second name
        path = archive(tmp_path / f"p.{kind}", members)
    assert means(load_dataset(str(path))) == [3, 2]


@pytest.mark.parametrize("cut", [0, 10, 300, 600, 1500])
def test_a_truncated_zip_is_told_and_a_truncated_tar_gives_what_is_left(tmp_path: Path, cut: int) -> None:
    for kind in ("zip", "tar"):
        path = archive(tmp_path / f"p.{kind}", [(name, png(value)) for name, value in CLASSES.items()])
        path.write_bytes(path.read_bytes()[: min(cut, path.stat().st_size - 30)])
    with pytest.raises(InvalidInput, match="not a readable zip"):
        load_dataset(str(tmp_path / "p.zip"))
    if cut < 512 + len(png(0)):
        with pytest.raises(InvalidInput, match="neither class sub-folders"):
            load_dataset(str(tmp_path / "p.tar"))
    else:
        dataset = load_dataset(str(tmp_path / "p.tar"))
        assert means(dataset) == [0]
        assert "damaged at byte" in dataset.quarantine[0].reason


def test_damage_inside_a_zip_stays_with_its_image(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.zip", [(name, png(value)) for name, value in CLASSES.items()])
    content = bytearray(path.read_bytes())
    start = content.index(b"cat/0.png") + len("cat/0.png")
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    dataset = Loader(load_dataset(str(path)), SIZE).inspect().dataset
    assert means(dataset) == [1, 2]
    assert "damaged" in dataset.quarantine[0].reason


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("cat/0.png"))
    with pytest.raises(InvalidInput, match="compressed"):
        load_dataset(str(tmp_path / "p.tar.gz"))
