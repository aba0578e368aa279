"""deepchecks' vision suites on a folder that `handover.py` wrote; runs in the environment of deepchecks.

python -I deepchecks_suites.py FOLDER

The suites for a training and a test set and for model evaluation, with their default conditions. Of the suite for data
integrity, which sets no condition, the correlation of properties with labels, with the default of its own condition.
The metadata are image properties beside the default ones and stand before them, for the search for weak segments looks
at the first five. The comparison with the training set gets the numerical ones only: its condition on drift allows a
categorical property a score below 0, which none can have. As the training set serves the reference, so that a fall
against it would be a true one. A condition that warns counts like one that fails. The condition on weak segments speaks
of the weakest; here each one that is weaker than it allows is told, with the values that deepchecks would draw.
"""

import csv
import json
import logging
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from deepchecks.vision import VisionData
from deepchecks.vision.checks import PropertyLabelCorrelation
from deepchecks.vision.suites import model_evaluation, train_test_validation
from deepchecks.vision.utils.image_properties import default_image_properties

BATCH = 200
WEAKER = 0.2
"""Default of the condition on weak segments: weaker than the average by this share of it."""


def main(folder: Path) -> None:
    test, train = read(folder), read(folder / "reference")
    order = np.random.default_rng(0).permutation(len(test["labels"]))
    begun = time.process_time()
    properties = metadata_properties([test, train]) + default_image_properties
    names = dict(enumerate(json.loads((folder / "classes.json").read_text(encoding="utf-8"))))
    sets = [vision_data(train, np.arange(len(train["labels"])), names), vision_data(test, order, names)]
    correlation = PropertyLabelCorrelation(image_properties=properties).add_condition_property_pps_less_than()
    results = [correlation.run(sets[1], with_display=False)]
    numerical = [of for of in properties if of["output_type"] == "numerical"]
    for suite in (train_test_validation(image_properties=numerical), model_evaluation(image_properties=properties)):
        results += suite.run(*sets, with_display=False, run_single_dataset="Test").results
    statements = [line for result in results for line in told(result, order)]
    answer = {
        "tool": f"deepchecks {version('deepchecks')}",
        "statements": statements,
        "seconds": time.process_time() - begun,
    }
    (folder / "told.json").write_text(json.dumps(answer, indent=1), encoding="utf-8")


def read(folder: Path) -> dict:
    with (folder / "attributes.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("images", "labels", "probabilities")}
    return {**arrays, "attributes": {name: [row[name] for row in rows] for name in rows[0]}}


def metadata_properties(sets: list[dict]) -> list[dict]:
    """A property is a function of images: it finds an image's metadata by its pixels."""
    place = {image.tobytes(): (part, row) for part in sets for row, image in enumerate(part["images"])}
    properties = []
    for name, values in sets[0]["attributes"].items():
        kind = float if all(is_number(value) for value in values) else str

        def method(images: list[np.ndarray], name: str = name, kind: type = kind) -> list:
            found = [place[np.ascontiguousarray(image).tobytes()] for image in images]
            columns = [(part["attributes"].get(name), row) for part, row in found]
            return [kind(column[row]) if column else None for column, row in columns]

        output = "numerical" if kind is float else "categorical"
        properties.append({"name": name, "method": method, "output_type": output})
    return properties


def is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def vision_data(part: dict, order: np.ndarray, names: dict[int, str]) -> VisionData:
    """In batches in a given order, so that rows of a result can be traced back."""
    batches = [
        {
            "images": list(part["images"][rows]),
            "labels": part["labels"][rows].tolist(),
            "predictions": part["probabilities"][rows].tolist(),
            "image_identifiers": [str(row) for row in rows],
        }
        for rows in np.split(order, range(BATCH, len(order), BATCH))
    ]
    return VisionData(batches, task_type="classification", label_map=names, reshuffle_data=False)


def told(result, order: np.ndarray) -> list[dict]:
    """One line for each condition that does not pass, and one for each weak segment behind it."""
    if hasattr(result, "exception"):
        return []
    check = type(result.check).__name__
    failing = [c for c in result.conditions_results if not c.is_pass()]
    lines = [{"check": check, "text": f"{condition.name}: {condition.details}"} for condition in failing]
    if check != "WeakSegmentsPerformance" or not failing:
        return lines
    average = result.value["avg_score"]
    for segment in result.value["weak_segments_list"].itertuples(index=False):
        score, first, values, second, others, _, samples = segment
        if score > average - WEAKER * abs(average):
            continue
        text = f"weak segment: {shown(first, values)}" + (f" and {shown(second, others)}" if second else "")
        lines.append({"check": check, "text": text, "images": order[list(samples)].tolist()})
    return lines


def shown(name: str, values) -> str:
    """Bounds or categories; who names more than two categories has not named one."""
    if not isinstance(values[0], str):
        return f"{name} from {values[0]:.2f} to {values[1]:.2f}"
    return f"{name} = " + (" or ".join(values) if len(values) <= 2 else "one of several")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(Path(sys.argv[1]))
