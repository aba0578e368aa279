"""A run as one run of MLflow, in a folder or on a tracking server.

The part of MLflow that works without a server and a database is its folder of files, which MLflow 3 opens only when
`MLFLOW_ALLOW_FILE_STORE` is set; a database address (sqlite:///mlflow.db) needs the whole of MLflow.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from snellen.audit.measures import Measure
from snellen.audit.stored_run import StoredRun
from snellen.errors import InvalidInput
from snellen.report.model_card import headline_measures

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "snellen"
IDENTITY_TAG = "snellen.identity"
ARTEFACTS = ("findings.json", "report.html", "manifest.json", "plan.yaml")
LONGEST_PARAMETER = 500


def export_mlflow(run: StoredRun, address: str) -> str:
    """Writes the run's figures, parameters and files; returns the MLflow run's id.

    address: a folder, or a tracking address of MLflow. Exporting the same model, data and plan again updates the run
    that is there.
    """
    # A folder of files is refused by MLflow 3 otherwise, and nothing about an examination leaves the machine unasked.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise InvalidInput("--to mlflow needs MLflow: pip install snellen[mlflow]") from error
    uri = address if "://" in address else Path(address).expanduser().resolve().as_uri()
    try:
        return _export(MlflowClient(tracking_uri=uri), run)
    except (MlflowException, OSError) as error:
        said = str(error).strip().split("\n")[0]
        raise InvalidInput(
            f"--out {address!r} cannot be opened as MLflow's tracking store, give a folder or the http address of a"
            f" server: {said}"
        ) from error


def _export(client: MlflowClient, run: StoredRun) -> str:
    identity = _identity(run)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    known = client.search_runs([number], filter_string=f"tags.`{IDENTITY_TAG}` = '{identity}'", max_results=1)
    name = f"{run.manifest.model.name} on {run.manifest.data.name}"
    tracked = known[0] if known else client.create_run(number, tags={IDENTITY_TAG: identity}, run_name=name)
    target: str = tracked.info.run_id
    for key, value in _parameters(run).items():
        if key not in tracked.data.params:  # MLflow never changes a parameter
            client.log_param(target, key, value[:LONGEST_PARAMETER])
    for key, figure in _metrics(headline_measures(run)).items():
        if tracked.data.metrics.get(key) != figure:
            client.log_metric(target, key, figure)
    _log_artefacts(client, target, run)
    client.set_tag(target, "snellen.status", run.manifest.status)
    client.set_terminated(target, "FINISHED" if run.complete else "FAILED")
    return target


def _log_artefacts(client: MlflowClient, target: str, run: StoredRun) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ARTEFACTS:
            content = run.store.read_bytes(name)
            if content is not None:
                Path(folder, name).write_bytes(content)
                client.log_artifact(target, str(Path(folder, name)))


def _identity(run: StoredRun) -> str:
    """What was examined and how; a resumed run keeps it."""
    manifest = run.manifest
    parts = (manifest.model.fingerprint, manifest.data.fingerprint, manifest.plan.model_dump_json())
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=12).hexdigest()


def _parameters(run: StoredRun) -> dict[str, str]:
    manifest = run.manifest
    return {
        "model": manifest.model.name,
        "model_fingerprint": manifest.model.fingerprint,
        "access": manifest.model.access,
        "data": manifest.data.name,
        "data_fingerprint": manifest.data.fingerprint,
        "samples": str(manifest.data.samples),
        "plan": manifest.plan.name,
        "seed": str(manifest.plan.seed),
        **{f"version_{_safe(name)}": text for name, text in manifest.versions.items()},
    }


def _metrics(measures: list[Measure]) -> dict[str, float]:
    found = {}
    for measure in measures:
        name = _safe(measure.spoken)
        if measure.value is not None:
            found[name] = measure.value
        if measure.interval is not None:
            found[f"{name}_low"], found[f"{name}_high"] = measure.interval
    return found


def _safe(name: str) -> str:
    """Letters, digits, dots, hyphens and underscores: what every store takes, and no path."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.")[:200]
