from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from snellen.data import Dataset, Geometry, Loader, load_dataset
from snellen.errors import InvalidInput

SIZE = Geometry((8, 8))


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def a_set(cells: list[dict[str, object]] | None = None, names: tuple[str, ...] = ("cat", "dog")) -> datasets.Dataset:
    cells = cells or [{"bytes": png(40 * index), "path": None} for index in range(5)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names)), "site": Value("string")})
    labels = [index % 2 for index in range(len(cells))]
    return datasets.Dataset.from_dict({"image": cells, "label": labels, "site": ["a"] * len(cells)}, features=features)


def means(dataset: Dataset) -> list[int]:
    return [int(dataset.pixels(row, SIZE).float().mean()) for row in range(len(dataset))]


def test_a_split_of_a_saved_data_set_is_read_with_its_class_names(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": a_set(), "test": a_set()}).save_to_disk(str(tmp_path / "d"))
    dataset = load_dataset(f"hf:{tmp_path / 'd'}:test")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.attributes == ("site",)
    assert means(dataset) == [0, 40, 80, 120, 160]


def test_a_single_saved_data_set_needs_no_split_and_no_scheme(tmp_path: Path) -> None:
    a_set().save_to_disk(str(tmp_path / "d"))
    assert list(load_dataset(f"hf:{tmp_path / 'd'}").ids) == list(load_dataset(str(tmp_path / "d")).ids)


def test_several_shards_are_one_data_set(tmp_path: Path) -> None:
    a_set().save_to_disk(str(tmp_path / "d"), num_shards=3)
    assert means(load_dataset(f"hf:{tmp_path / 'd'}")) == [0, 40, 80, 120, 160]


def test_rows_selected_before_saving_keep_their_order(tmp_path: Path) -> None:
    a_set().select([3, 0, 4]).save_to_disk(str(tmp_path / "d"))
    assert means(load_dataset(f"hf:{tmp_path / 'd'}")) == [120, 0, 160]


def test_a_missing_split_is_told_with_those_there_are(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": a_set(), "test": a_set()}).save_to_disk(str(tmp_path / "d"))
    for address in (f"hf:{tmp_path / 'd'}:validation", f"hf:{tmp_path / 'd'}"):
        with pytest.raises(InvalidInput, match="train, test"):
            load_dataset(address)


@pytest.mark.parametrize("address", ["hf:someone/photos:test", "hf:someone/photos", "hf:"])
def test_a_name_on_the_hub_is_told_that_nothing_is_downloaded(address: str) -> None:
    with pytest.raises(InvalidInput, match="save_to_disk"):
        load_dataset(address)


def test_an_image_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(10))
    inside = tmp_path / "d"
    inside.mkdir()
    (inside / "inner.png").write_bytes(png(20))
    cells = [
        {"bytes": None, "path": "inner.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": "\0"},
        {"bytes": None, "path": "gone.png"},
    ]
    _save_as_it_is(cells, inside)
    dataset = Loader(load_dataset(f"hf:{inside}"), SIZE).inspect().dataset
    assert means(dataset) == [20]
    reasons = [sample.reason for sample in dataset.quarantine]
    assert sum("leaves the data set's folder" in reason for reason in reasons) == 3
    assert sum("missing" in reason for reason in reasons) == 1


def _save_as_it_is(cells: list[dict[str, object]], folder: Path) -> None:
    """As `save_to_disk` lays it out, but without its taking the files' bytes along."""
    table = a_set(cells).data.table
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0", "_format_columns": None}
    state |= {"_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    described = {"features": a_set(cells).features.to_dict(), "citation": "", "description": "", "homepage": ""}
    (folder / "dataset_info.json").write_text(json.dumps(described | {"license": ""}))


def test_data_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    a_set().save_to_disk(str(tmp_path / "d"))
    state = json.loads((tmp_path / "d/state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere.arrow"}]
    (tmp_path / "d/state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidInput, match="outside its folder"):
        load_dataset(f"hf:{tmp_path / 'd'}")


def test_a_damaged_arrow_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    a_set().save_to_disk(str(tmp_path / "d"))
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_dataset(f"hf:{tmp_path / 'd'}")


def test_the_image_column_is_found_by_its_type_and_mask_is_the_mask(tmp_path: Path) -> None:
    features = Features({"mask": ImageFeature(), "photo": ImageFeature(), "kind": Value("string")})
    cells = [{"bytes": png(200), "path": None}] * 2
    rows = {"mask": cells, "photo": [{"bytes": png(7), "path": None}] * 2, "kind": ["x", "y"]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    dataset = load_dataset(f"hf:{tmp_path / 'd'}", label_column="kind")
    assert dataset.class_names == ("x", "y")
    assert means(dataset) == [7, 7]
    assert dataset.mask(0, SIZE).all()


def test_no_image_column_is_told_with_the_types_there_are(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InvalidInput, match=r"label \(Value\)"):
        load_dataset(f"hf:{tmp_path / 'd'}")


def parquet_shards(folder: Path, split: str, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        a_set([{"bytes": png(100 * shard + 10 * row), "path": None} for row in range(3)]).to_parquet(
            str(folder / f"{split}-{shard:05d}-of-{count:05d}.parquet")
        )


@pytest.mark.parametrize("form", ["{}", "{}/data", "{}/data/*.parquet", "{}/data/test-*.parquet"])
def test_parquet_shards_are_one_data_set(tmp_path: Path, form: str) -> None:
    parquet_shards(tmp_path / "data", "test")
    dataset = load_dataset(form.format(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert means(dataset) == [0, 10, 20, 100, 110, 120]
    assert len(set(dataset.ids)) == 6


def test_parquet_shards_of_two_splits_are_not_mixed(tmp_path: Path) -> None:
    parquet_shards(tmp_path / "data", "train")
    parquet_shards(tmp_path / "data", "test")
    with pytest.raises(InvalidInput, match=r"splits test, train.*test-\*\.parquet"):
        load_dataset(str(tmp_path))
    assert len(load_dataset(f"{tmp_path}/data/test-*.parquet")) == 6


def test_a_shard_without_the_columns_is_named(tmp_path: Path) -> None:
    parquet_shards(tmp_path, "test", 1)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "z.parquet")
    with pytest.raises(InvalidInput, match=r"z\.parquet has no column 'image'"):
        load_dataset(str(tmp_path))
