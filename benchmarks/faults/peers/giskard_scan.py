"""giskard-vision's scan on a folder that `handover.py` wrote; runs in the environment of giskard-vision.

python -I giskard_scan.py FOLDER

As its documentation has it: a data loader that adds the metadata to the default ones (brightness, contrast, entropy,
mean colours), a model that predicts one image, and `scan` with its detectors: slices of the metadata, noise, blur and
grey images. The label is no metadata there and therefore none here. A slice is told with the images it holds, and in
giskard's words, but for name = value as our own titles have it.
"""

import csv
import json
import logging
import os
import re
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["GSK_DISABLE_ANALYTICS"] = "True"

import cv2
import numpy as np
import onnxruntime
import pandas as pd
from giskard_vision.core.dataloaders.base import DataIteratorBase
from giskard_vision.core.dataloaders.meta import MetaData
from giskard_vision.core.issues import PerformanceIssueMeta
from giskard_vision.core.models.base import ModelBase
from giskard_vision.core.scanner import scan
from giskard_vision.image_classification.types import Types


class Images(DataIteratorBase):
    def __init__(self, folder: Path) -> None:
        super().__init__("case", batch_size=1)
        self.images, self.labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
        with (folder / "attributes.csv").open(encoding="utf-8") as file:
            self.attributes = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
        self.names = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        self.categories = [name for name, value in self.attributes[0].items() if isinstance(value, str)]

    @property
    def idx_sampler(self) -> np.ndarray:
        return np.arange(len(self.labels))

    def get_image(self, idx: int) -> np.ndarray:
        return self.images[idx]

    def get_label(self, idx: int) -> str:
        return self.names[self.labels[idx]]

    def get_meta(self, idx: int) -> MetaData:
        default = super().get_meta(idx)
        own = self.attributes[idx]
        return MetaData(
            data={**own, **default.data},
            categories=[*default.categories, *self.categories],
            issue_groups={**default.issue_groups, **dict.fromkeys(own, PerformanceIssueMeta)},
        )


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


class Network(ModelBase):
    model_type = "image_classification"
    prediction_result_cls = Types.prediction_result
    name = "network"

    def __init__(self, folder: Path) -> None:
        single = onnxruntime.SessionOptions()
        single.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "network.onnx", single)
        self.classification_labels = json.loads((folder / "classes.json").read_text(encoding="utf-8"))

    def predict_rgb_image(self, image: np.ndarray) -> str:
        given = {self.session.get_inputs()[0].name: image.transpose(2, 0, 1)[None].astype(np.float32) / 255}
        return self.classification_labels[int(self.session.run(None, given)[0].argmax())]

    def predict_gray_image(self, image: np.ndarray) -> str:
        return self.predict_rgb_image(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))


def main(folder: Path) -> None:
    data = Images(folder)
    begun = time.process_time()
    report = scan(Network(folder), data, verbose=False, raise_exceptions=True, num_images=0)
    seconds = time.process_time() - begun
    table = pd.DataFrame([data.get_meta(row).data for row in data.idx_sampler])
    statements = [told(issue, table) for issue in report.issues]
    tools = " with ".join(f"{name} {version(name)}" for name in ("giskard-vision", "giskard"))
    answer = {"tool": tools, "statements": statements, "seconds": seconds}
    (folder / "told.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")


def told(issue, table: pd.DataFrame) -> dict:
    change = f"{issue.meta['metric']} {issue.meta['deviation']}"
    if issue.transformation_fn:
        return {"check": "perturbation", "text": f"{issue.transformation_fn}: {change}", "about": "shift"}
    rule = str(issue.slicing_fn)
    inside = table.query(re.sub(r"\bAND\b", "and", rule)).index.tolist()
    plain = re.sub(r'`(\w+)` == "([^"]*)"', r"\1 = \2", rule)
    return {"check": "metadata slice", "text": f"{plain}: {change}", "images": inside}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]))
