"""`snellen doctor`."""

from __future__ import annotations

import importlib.util
import json
import sys

import torch
from rich.console import Console
from rich.table import Table

from snellen.audit.manifest import hardware, versions
from snellen.demo.network import SHIPPED, WEIGHTS

OPTIONAL = {
    "onnxruntime": "ONNX models, pip install snellen[onnx]",
    "transformers": "hf: models, pip install snellen[hf]",
    "datasets": "hf: data, pip install snellen[hf]",
    "open_clip": "clip: models, pip install snellen[clip]",
    "s3fs": "s3:// data and run directories, pip install snellen[remote]",
    "ray": "--executor ray, pip install snellen[ray]",
    "mlflow": "snellen export --to mlflow, pip install snellen[mlflow]",
    "torchmetrics": "shift/detection, pip install snellen[detection]",
    "diffusers": "shift/diffusion-slider, pip install snellen[diffusion]",
    "cv2": "shift/attribute-edits masks=grabcut, pip install snellen[masks]",
    "torchattacks": "peer for attack tests and benchmarks",
    "foolbox": "peer for attack benchmarks",
    "captum": "peer for explanation tests",
    "imagecorruptions": "peer for corruption tests and benchmarks",
}


def check_installation(as_json: bool) -> int:
    """The whole command; exit status 0 when everything that is needed is there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = {name: (WEIGHTS / f"{name}.safetensors").is_file() for name in SHIPPED}
    optional = {name: importlib.util.find_spec(name) is not None for name in OPTIONAL}
    healthy = all(weights.values())
    if as_json:
        found = {"versions": versions(), "hardware": hardware(device), "demo_weights": weights, "optional": optional}
        sys.stdout.write(json.dumps({"healthy": healthy, **found}, indent=1) + "\n")
        return 0 if healthy else 2
    table = Table("part", "state", "note", title="snellen doctor", title_justify="left")
    for name, text in versions().items():
        table.add_row(name, text, "")
    for name, value in hardware(device).items():
        table.add_row(name, str(value), "")
    for name, there in weights.items():
        table.add_row(f"demo weights: {name}", "there" if there else "missing", "" if there else "reinstall snellen")
    for name, there in optional.items():
        table.add_row(name, "there" if there else "not installed", f"optional: {OPTIONAL[name]}")
    Console().print(table)
    return 0 if healthy else 2
