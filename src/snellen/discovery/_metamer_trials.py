"""Tables of trials for a study of metamers, out to people and back, with checks on the way.

Oddity: three images in the periphery one after another, which is the odd one (chance 1/3)? Matching: one image at the
centre, then two in the periphery, which is the same (chance 1/2)? Every other detail of a session (100 ms a picture,
a second of fixation, 7 degrees a picture in the paper) is the experimenter's.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.randomness import derive_seed

Task = Literal["oddity", "matching"]
Comparison = Literal["original-synth", "synth-synth"]
CHANCE: Mapping[Task, float] = {"oddity": 1 / 3, "matching": 1 / 2}
PLACES: Mapping[Task, int] = {"oddity": 3, "matching": 2}
TASKS: Mapping[str, Task] = {task: task for task in CHANCE}
COMPARISONS: Mapping[str, Comparison] = {"original-synth": "original-synth", "synth-synth": "synth-synth"}
FLATTEST = 0.02
"""Standard deviation of the pixels below which an image is flat grey and shows nothing."""


class Trial(NamedTuple):
    """eccentricity: degrees. first, second, third: names of stimuli, in oddity by time, in matching the centre and the
    two in the periphery. answer: the right one, 1 to 3 in oddity, 1 or 2 of the two in matching."""

    trial_id: str
    encoder: str
    task: Task
    comparison: Comparison
    eccentricity: float
    target: str
    first: str
    second: str
    third: str
    answer: int


class Answer(NamedTuple):
    trial_id: str
    observer: str
    response: int


def stimulus_name(target: str, encoder: str = "", copy: int = -1) -> str:
    """The name of the original of a target, or of an encoder's metamer `copy` of it."""
    return f"{target}/original" if copy < 0 else f"{target}/{encoder}/synth{copy}"


def balanced_trials(
    encoder: str,
    targets: Sequence[str],
    eccentricities: Sequence[float],
    *,
    tasks: Sequence[Task] = ("oddity", "matching"),
    comparisons: Sequence[Comparison] = ("original-synth", "synth-synth"),
    seed: int = 0,
) -> list[Trial]:
    """One trial for each task, comparison, eccentricity and target, in random order.

    Within each of those cells the right answer is in every place equally often (up to one), and each of the two images
    is the repeated one in half of the trials. Targets: names of different images that are not flat; "synth-synth" needs
    two copies.
    """
    names, degrees = list(targets), [float(e) for e in eccentricities]
    if not names or len(set(names)) < len(names) or not encoder:
        raise InvalidInput(f"targets must be one or more different names with an encoder's name, got {names[:5]}")
    if not degrees or len(set(degrees)) < len(degrees) or not all(0 < e < math.inf for e in degrees):
        raise InvalidInput(f"eccentricities must be different degrees above 0, got {degrees}")
    trials = []
    for task in tasks:
        for comparison in comparisons:
            for eccentricity in degrees:
                rng = np.random.default_rng(derive_seed(seed, encoder, task, comparison, eccentricity))
                for place, row in enumerate(rng.permutation(len(names)).tolist()):
                    answer, repeats_first = place % PLACES[task] + 1, place // PLACES[task] % 2 == 0
                    pair = _pair(names[row], encoder, comparison)
                    same, other = pair if repeats_first else pair[::-1]
                    shown = _places(task, same, other, answer)
                    key = derive_seed(encoder, task, comparison, eccentricity, names[row])
                    trials.append(
                        Trial(f"{key:016x}", encoder, task, comparison, eccentricity, names[row], *shown, answer)
                    )
    return sorted(trials, key=lambda trial: derive_seed(seed, "order", trial.trial_id))


def _pair(target: str, encoder: str, comparison: Comparison) -> tuple[str, str]:
    synth = stimulus_name(target, encoder, 0)
    if comparison == "original-synth":
        return stimulus_name(target), synth
    return synth, stimulus_name(target, encoder, 1)


def _places(task: Task, same: str, other: str, answer: int) -> tuple[str, str, str]:
    if task == "oddity":
        shown = [same, same, same]
        shown[answer - 1] = other
        return shown[0], shown[1], shown[2]
    return (same, same, other) if answer == 1 else (same, other, same)


def check_balance(trials: Sequence[Trial]) -> None:
    """Refuse a table in which a cell has the right answer in one place more often than in another by two or more."""
    cells: dict[tuple[str, Task, Comparison, float], Counter[int]] = {}
    for trial in trials:
        if trial.task not in CHANCE or trial.answer not in range(1, PLACES[trial.task] + 1):
            raise InvalidInput(f"trial {trial.trial_id} must have a known task and answer, got {trial.task!r}")
        if trial.comparison not in COMPARISONS or not 0 < trial.eccentricity < math.inf:
            raise InvalidInput(f"trial {trial.trial_id} must have a known comparison and an eccentricity above 0")
        key = (trial.encoder, trial.task, trial.comparison, trial.eccentricity)
        cells.setdefault(key, Counter())[trial.answer] += 1
    for key, counts in cells.items():
        places = [counts[place] for place in range(1, PLACES[key[1]] + 1)]
        if max(places) - min(places) > 1:
            raise InvalidInput(f"trials must have balanced answers, {', '.join(map(str, key))} has {places} by place")


def write_trials(trials: Sequence[Trial], path: Path) -> None:
    """The table as CSV, one trial a line; refuses an unbalanced one."""
    check_balance(trials)
    _write(path, Trial._fields, trials)


def read_trials(path: Path) -> list[Trial]:
    """What `write_trials` wrote; refuses trials that are there twice and an unbalanced table."""
    trials = []
    for line in _read(path, Trial._fields):
        if line["task"] not in TASKS or line["comparison"] not in COMPARISONS:
            raise InvalidInput(
                f"{path.name} has an unknown task or comparison: {line['task']!r}, {line['comparison']!r}"
            )
        task, comparison = TASKS[line["task"]], COMPARISONS[line["comparison"]]
        eccentricity, answer = _number(line["eccentricity"], path), round(_number(line["answer"], path))
        shown = (line["target"], line["first"], line["second"], line["third"])
        trials.append(Trial(line["trial_id"], line["encoder"], task, comparison, eccentricity, *shown, answer))
    if len({trial.trial_id for trial in trials}) < len(trials):
        raise InvalidInput(f"{path.name} has a trial_id twice")
    check_balance(trials)
    return trials


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """Answers as CSV: trial_id, observer, response."""
    _write(path, Answer._fields, answers)


def read_answers(path: Path, trials: Sequence[Trial]) -> list[Answer]:
    """Answers from CSV, checked: known trials, one answer an observer and trial, a place that there was."""
    answers = [
        Answer(line["trial_id"], line["observer"], round(_number(line["response"], path)))
        for line in _read(path, Answer._fields)
    ]
    check_answers(answers, trials)
    return answers


def check_answers(answers: Sequence[Answer], trials: Sequence[Trial]) -> None:
    known = {trial.trial_id: trial for trial in trials}
    seen = set()
    for answer in answers:
        if answer.trial_id not in known:
            raise InvalidInput(f"answers must be to trials of the table, {answer.trial_id!r} is none of them")
        places = PLACES[known[answer.trial_id].task]
        if answer.response not in range(1, places + 1):
            raise InvalidInput(f"the answer to {answer.trial_id!r} must be 1 to {places}, got {answer.response}")
        if (answer.trial_id, answer.observer) in seen:
            raise InvalidInput(f"{answer.observer!r} must answer a trial once, {answer.trial_id!r} is there twice")
        seen.add((answer.trial_id, answer.observer))


def write_stimuli(images: Mapping[str, Tensor], trials: Sequence[Trial], folder: Path) -> None:
    """Every image of the table as `NAME.png`. images: name -> `[C, H, W]` in [0, 1], 1 or 3 channels.

    Raises InvalidInput for a name that is missing or leads out of the folder, and for a flat grey image, which nobody
    can tell from another.
    """
    names = sorted({name for trial in trials for name in (trial.first, trial.second, trial.third)})
    for name in names:
        if name not in images or float(images[name].std()) < FLATTEST:
            raise InvalidInput(f"images must hold {name!r} with some contrast, got none or a flat one")
        path = folder / f"{name}.png"
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(f"the name {name!r} must stay in the folder of the stimuli")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (images[name].detach().clamp(0, 1) * 255).round().byte().cpu().numpy().transpose(1, 2, 0)
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def _write(path: Path, columns: Sequence[str], lines: Sequence[Trial] | Sequence[Answer]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(lines)


def _read(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(columns) <= set(reader.fieldnames or ()):
            raise InvalidInput(f"{path.name} must have the columns {', '.join(columns)}, got {reader.fieldnames}")
        for line in reader:
            if any(line[name] is None for name in columns):
                raise InvalidInput(f"{path.name} has a line without a value for each of {', '.join(columns)}")
            yield line


def _number(text: str, path: Path) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"{path.name} has {text!r} where a number must be")
    return number
