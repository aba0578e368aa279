from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from snellen.data import Dataset, Geometry, Loader, align_classes, fingerprint, load_dataset
from snellen.errors import InvalidInput


def write_image(path: Path, seed: int = 0, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


def folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> Path:
    for label, name in enumerate(classes):
        for index in range(each):
            write_image(root / name / f"{index}.png", seed=10 * label + index)
    return root


def usable(dataset: Dataset) -> Dataset:
    return Loader(dataset, Geometry((8, 8))).inspect().dataset


def test_class_folders_are_read_in_name_order(tmp_path: Path) -> None:
    dataset = load_dataset(str(folders(tmp_path)))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.ids[0] == "cat/0.png"
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_metadata_columns_become_attributes(tmp_path: Path) -> None:
    for index in range(3):
        write_image(tmp_path / f"{index}.png", index)
    (tmp_path / "metadata.csv").write_text(
        "file_name,label,light,angle\n0.png,cat,day,1.5\n1.png,dog,night,2\n2.png,cat,day,\n"
    )
    dataset = load_dataset(str(tmp_path))
    assert dataset.attributes == ("light", "angle")
    assert dataset.table.column("angle").to_pylist() == [1.5, 2.0, None]
    assert len(usable(dataset)) == 3


def test_metadata_in_json_lines(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = [
        {"file_name": "a.png", "label": "cat", "site": "north"},
        {"file_name": "b.png", "label": "dog", "site": "south"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = usable(load_dataset(str(tmp_path)))
    assert dataset.ids == ["a.png"]
    assert dataset.quarantine[0].reason == "the file is missing"


def test_every_unusable_sample_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    folders(tmp_path)
    whole = (tmp_path / "cat/0.png").read_bytes()
    (tmp_path / "cat/truncated.png").write_bytes(whole[:-40])
    (tmp_path / "cat/empty.png").write_bytes(b"")
    (tmp_path / "dog/text.png").write_text("no picture")
    (tmp_path / "dog/.DS_Store").write_bytes(b"x")
    dataset = usable(load_dataset(str(tmp_path)))
    reasons = {sample.id: sample.reason for sample in dataset.quarantine}
    assert set(reasons) == {"cat/truncated.png", "cat/empty.png", "dog/text.png"}
    assert "truncated" in reasons["cat/truncated.png"]
    assert len(dataset) == 6


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../b.png", "..\\up.png", ""])
def test_file_names_that_leave_the_folder_are_not_followed(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "secret.png")
    inner = tmp_path / "data"
    write_image(inner / "ok.png")
    rows = [{"file_name": "ok.png", "label": "cat"}, {"file_name": name, "label": "dog"}]
    (inner / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = load_dataset(str(inner))
    assert dataset.ids == ["ok.png"]
    assert "leaves the data folder" in dataset.quarantine[0].reason


def test_missing_and_repeated_rows_are_quarantined(tmp_path: Path) -> None:
    for index in range(2):
        write_image(tmp_path / f"{index}.png", index)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,cat\n0.png,cat\n1.png,\n1.png,dog\n")
    dataset = load_dataset(str(tmp_path))
    assert dataset.ids == ["0.png", "1.png"]
    assert len(dataset.quarantine) == 2


def parquet_file(path: Path, names: list[str] | None = None) -> Path:
    cells = []
    for index in range(5):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 40 * index, dtype=np.uint8)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": f"{index}.png"})
    table = pa.table({"image": cells, "label": [0, 1, 0, 1, 0], "site": ["a", "b", "a", "b", "a"]})
    if names:
        described = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_parquet_with_image_bytes(tmp_path: Path) -> None:
    dataset = load_dataset(str(parquet_file(tmp_path / "d.parquet", ["cat", "dog"])))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.attributes == ("site",)
    assert [int(dataset.pixels(row, Geometry((8, 8))).float().mean()) for row in range(5)] == [0, 40, 80, 120, 160]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "does not exist"),
        (lambda root: root, "neither class sub-folders"),
        (lambda root: folders(root, ("train", "test")), "holds splits"),
    ],
)
def test_wrong_paths_are_told_in_one_sentence(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_dataset(str(make(tmp_path)))


def test_empty_class_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(InvalidInput, match="holds no images"):
        load_dataset(str(tmp_path))


def test_a_subset_of_the_models_classes_is_aligned_by_name(tiny_data: Dataset) -> None:
    aligned = align_classes(tiny_data, ("ant", "owl", "dog", "cat"))
    assert aligned.labels[:3].tolist() == [3, 2, 1]


def test_aliases_match_too(tiny_data: Dataset) -> None:
    aligned = align_classes(tiny_data, ("tabby", "dog", "owl"), {"cat": "tabby"})
    assert aligned.labels[:3].tolist() == [0, 1, 2]


def test_unknown_classes_are_an_error_that_shows_both_lists(tiny_data: Dataset) -> None:
    with pytest.raises(InvalidInput, match=r"owl.*\[cat, dog\].*\[cat, dog, owl\]"):
        align_classes(tiny_data, ("cat", "dog"))


def test_bare_integers_are_output_indices_and_one_outside_is_quarantined(tmp_path: Path) -> None:
    lines = ["file_name,label"]
    for index in range(40):
        write_image(tmp_path / f"{index}.png", index)
        lines.append(f"{index}.png,{9 if index == 7 else index % 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    aligned = align_classes(load_dataset(str(tmp_path)), ("cat", "dog"))
    assert len(aligned) == 39
    assert "outside the classes" in aligned.quarantine[0].reason
    assert any("integers" in note for note in aligned.warnings)


def test_batches_keep_order_whatever_their_size(tmp_path: Path) -> None:
    dataset = load_dataset(str(folders(tmp_path, each=9)))
    loader = Loader(dataset, Geometry((8, 8)), workers=4)
    rows = np.random.default_rng(0).permutation(len(dataset))
    for size in (1, 4, 100):
        batches = list(loader.batches(rows, size))
        assert [name for batch in batches for name in batch.ids] == [dataset.ids[row] for row in rows]
        first = batches[0].images[0]
        assert np.allclose(first.numpy() * 255, dataset.pixels(int(rows[0]), Geometry((8, 8))).numpy())


def test_the_fingerprint_follows_content_label_and_name(tmp_path: Path) -> None:
    def of(root: Path) -> str:
        inspected = Loader(load_dataset(str(root)), Geometry((8, 8))).inspect()
        return fingerprint(inspected.digests)

    before = of(folders(tmp_path / "a"))
    assert before == of(folders(tmp_path / "b"))
    write_image(tmp_path / "b/cat/0.png", seed=99)
    assert before != of(tmp_path / "b")


def test_masks_come_with_the_batch_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    rows = ["file_name,label,mask_file_name"]
    for index, mask in enumerate(("m0.png", "")):
        Image.new("RGB", (40, 40), (index * 90, 0, 0)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,cat,{mask}")
    drawn = np.zeros((40, 40), dtype=np.uint8)
    drawn[:20] = 255
    Image.fromarray(drawn).save(tmp_path / "m0.png")
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")

    dataset = load_dataset(str(tmp_path))
    (batch,) = Loader(dataset, Geometry((20, 20))).batches([0, 1], 2)
    assert batch.masks is not None
    assert batch.masks.dtype == torch.bool
    assert batch.masks[0, :10].all()
    assert not batch.masks[0, 10:].any()
    assert not batch.masks[1].any()

    before = Loader(dataset, Geometry((20, 20))).inspect().digests
    Image.fromarray(255 - drawn).save(tmp_path / "m0.png")
    after = Loader(dataset, Geometry((20, 20))).inspect().digests
    assert before[0].tobytes() != after[0].tobytes()
    assert before[1].tobytes() == after[1].tobytes()


def test_a_broken_mask_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    (tmp_path / "m0.png").write_bytes(b"not an image")
    (tmp_path / "metadata.csv").write_text("file_name,label,mask_file_name\n0.png,cat,m0.png\n")
    inspected = Loader(load_dataset(str(tmp_path)), Geometry((20, 20))).inspect()
    assert len(inspected.dataset) == 0
    assert "mask" in inspected.dataset.quarantine[0].reason


def test_the_demo_has_masks() -> None:
    (batch,) = Loader(load_dataset("demo"), Geometry((32, 32))).batches([0, 1, 2], 3)
    assert batch.masks is not None
    assert 0.02 < batch.masks.float().mean() < 0.5
