"""`manifest.json`: what was examined, with what, on what, and what it cost."""

from __future__ import annotations

import io
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from snellen.audit.store import JobRecord
from snellen.data import Quarantined
from snellen.models import LedgerTotals

if TYPE_CHECKING:
    from snellen.audit.record import Audit

SCHEMA_VERSION = 1
PACKAGES = ("snellen", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow", "pyarrow", "duckdb")


def describe_run(
    audit: Audit,
    status: str,
    names: tuple[str, str],
    data_fingerprint: str,
    begun: float,
    costs: Mapping[str, JobRecord],
    spent: LedgerTotals,
    inputs: Mapping[str, object],
) -> dict[str, object]:
    """The manifest as plain JSON values.

    spent: everything ever asked of the model for this run directory, by killed runs and failed jobs too. costs: of the
    finished jobs.
    """
    spec = audit.model.spec
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "model": {
            "name": names[0],
            "fingerprint": spec.fingerprint,
            "access": str(audit.model.access),
            "task": spec.task,
            "classes": list(spec.class_names),
            "input_size": list(spec.input_size),
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
        },
        "data": {
            "name": names[1],
            "fingerprint": data_fingerprint,
            "samples": len(audit.dataset),
            "quarantined": len(audit.dataset.quarantine),
            "attributes": list(audit.dataset.attributes),
        },
        "inputs": dict(inputs),
        "plan": audit.plan.model_dump(mode="json"),
        "seed": audit.plan.seed,
        "left_out": [asdict(item) for item in audit.left_out],
        "failed_jobs": [asdict(item) for item in audit.failures],
        "stopped": audit.stopped,
        "unreached": [asdict(item) for item in audit.unreached],
        "warnings": audit.warnings,
        "started": datetime.fromtimestamp(begun, UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(time.time() - begun, 2),
        "ledger": {
            **asdict(spent),
            "seconds": round(sum(cost.seconds for cost in costs.values()), 2),
            "by_probe": {label: cost._asdict() for label, cost in costs.items()},
        },
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": hardware(audit.model.device),
        "command": " ".join(["snellen", *sys.argv[1:]]) if sys.argv else "",
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, object]:
    described: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def quarantine_table(quarantine: Sequence[Quarantined]) -> bytes:
    """`quarantine.parquet`: id and reason of every sample that was not used."""
    table = pa.table(
        {
            "id": pa.array([sample.id for sample in quarantine], pa.string()),
            "reason": pa.array([sample.reason for sample in quarantine], pa.string()),
        }
    )
    return as_parquet(table)


def as_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
