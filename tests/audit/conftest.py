"""Run directories with known content, written as the engine writes them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from snellen.audit.manifest import as_parquet
from snellen.audit.store import JobRecord, Store
from snellen.probe import rows

MakeRun = Callable[..., str]
CLASSES = ("cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of sixty noise images of 16 px in three classes."""
    rng = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "photos" / ("cat", "dog", "owl")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index:03}.png")
    return tmp_path / "photos"


def finding(
    name: str = "statement", severity: str = "high", ci: object = (0.1, 0.2), **other: object
) -> dict[str, object]:
    """An object of findings.json whose id follows from its name."""
    return {
        "schema_version": 1,
        "id": name.encode().hex()[:12].ljust(12, "0"),
        "probe": "predictions",
        "kind": "accuracy",
        "severity": severity,
        "title": name,
        "subject": {"class": name},
        "metric": "measured thing",
        "value": 0.15,
        "baseline": None,
        "effect": 0.2,
        "ci": ci,
        "n": 50,
        "p_value": None,
        "q_value": None,
        "evidence": [],
        "repeat": f"snellen run predictions model data # {name}",
        **other,
    }


@pytest.fixture
def add_rows() -> Callable[[str, str, str, pa.Table], None]:
    """One more job of a run: address, label, key, rows."""

    def add(url: str, label: str, key: str, table: pa.Table) -> None:
        store = Store(url)
        store.commit(label.partition("#")[0], key, table, JobRecord(1, 0, 0.1))
        jobs = pq.read_table(io.BytesIO(store.read_bytes("jobs.parquet") or b""))
        more = pa.table({"label": [label], "key": [key]})
        store.write(as_parquet(pa.concat_tables([jobs, more])), "jobs.parquet")

    return add


@pytest.fixture
def make_finding() -> Callable[..., dict[str, object]]:
    return finding


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """right: the answers to images "0", "1", ... of two classes in turn. robust: eps -> survivors among them."""

    def make(
        name: str,
        right: Sequence[bool],
        *,
        robust: dict[float, Sequence[bool]] | None = None,
        groups: Sequence[tuple[str, str, int, int]] = (),
        labels: Sequence[int] | None = None,
        findings: Sequence[dict[str, object]] = (),
        settings: dict[str, object] | None = None,
        address: str | None = None,
        **manifest: object,
    ) -> str:
        url = address or str(tmp_path / name)
        store = Store(url)
        n = len(right)
        ids, truth = [str(i) for i in range(n)], np.asarray(labels if labels is not None else np.arange(n) % 2)
        answer = np.asarray(right, bool)
        predictions = rows(
            ids, label=truth, predicted=np.where(answer, truth, 1 - truth), correct=answer, confidence=np.full(n, 0.9)
        )
        record = JobRecord(n, 0, 0.1)
        half = n // 2
        store.commit("predictions", "a" * 32, predictions.slice(0, half), record)
        store.commit("predictions", "b" * 32, predictions.slice(half), record)
        probes: list[dict[str, object]] = [{"probe": "predictions"}]
        if robust:
            probes.append({"probe": "attack/pgd", "settings": settings or {}})
            for place, (eps, survived) in enumerate(robust.items()):
                table = rows(
                    ids,
                    label=truth,
                    eps=[eps] * n,
                    norm=["linf"] * n,
                    clean_correct=answer,
                    robust=np.asarray(survived),
                )
                store.commit("attack/pgd", f"{place:032x}", table, record)
        if groups:
            probes.append({"probe": "accuracy"})
            dimension, value, count, correct = zip(*groups, strict=True)
            table = rows([""] * len(groups), dimension=dimension, value=value, n=count, correct=correct)
            store.commit("accuracy", "c" * 32, table.drop_columns(["id"]), record)
        written = {
            "schema_version": 1,
            "status": "finished",
            "model": {
                "name": name,
                "fingerprint": f"model {name}",
                "access": "weights",
                "task": "classification",
                "classes": CLASSES,
            },
            "data": {"name": "pets", "fingerprint": "data", "samples": n, "quarantined": 0, "attributes": []},
            "plan": {"name": "test", "seed": manifest.pop("seed", 0), "probes": probes},
            "left_out": [],
            "failed_jobs": [],
            "stopped": None,
            "unreached": [],
            "warnings": [],
            "started": "2026-01-01T00:00:00+00:00",
            "versions": {"snellen": "0.1.0", "torch": "2"},
            "ledger": {"forward": n, "backward": 0, "by_probe": {p["probe"]: record._asdict() for p in probes}},
            **manifest,
        }
        keys = [("predictions", "a" * 32), ("predictions", "b" * 32), ("accuracy", "c" * 32)]
        keys += [("attack/pgd", f"{place:032x}") for place in range(len(robust or {}))]
        jobs = pa.table({"label": [label for label, _ in keys], "key": [key for _, key in keys]})
        store.write(as_parquet(jobs), "jobs.parquet")
        store.write(json.dumps(written).encode(), "manifest.json")
        store.write(json.dumps(list(findings)).encode(), "findings.json")
        return url

    return make
