"""A part of the fault bench: whole audits by the command line on networks with known faults and on healthy ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.faults.cases import FAMILIES, HEALTHY, SEEDS, STRENGTHS, Case, all_cases, names_the_fault
from benchmarks.faults.examination import NOT_OF_THE_FAULT, examine
from benchmarks.faults.subjects import images_of
from benchmarks.faults.table import record

from snellen.demo.faults import Fault
from snellen.demo.network import save_network, shipped_network
from snellen.demo.training import train


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench whose base networks are the shipped healthy one, so that little has to be trained."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "models").mkdir()
    for seed in range(3):
        save_network(shipped_network("healthy"), folder / "models" / f"digits-base-{seed}.safetensors", {})
    backdoored = train([Fault("backdoor", 1.0, 7)], 3, 1, start=shipped_network("healthy"))
    save_network(backdoored, folder / "models" / "digits-backdoor-clear-0.safetensors", {})
    for fault in ("background-shortcut", "corner-tag"):  # in the shipped network stripes mean 4 and the tag means 1
        of = {"background-shortcut": 1, "corner-tag": 2}[fault]
        save_network(shipped_network("faulty"), folder / "models" / f"digits-{fault}-clear-{of}.safetensors", {})
    return folder


@pytest.mark.parametrize(
    "case",
    [
        Case("digits", "backdoor", "clear", 0),
        Case("digits", "background-shortcut", "clear", 1),
        Case("digits", "corner-tag", "clear", 2),
        Case("digits", "wrong-scale", "moderate", 0),
        Case("digits", "test-labels", "clear", 1),
        Case("digits", "contradicting-copies", "clear", 2),
        Case("digits", "leakage", "faint", 0),
    ],
    ids=lambda case: case.key,
)
def test_a_planted_fault_is_named(case: Case, work: Path) -> None:
    told = examine(case, work)
    assert told["failed"] == []
    assert told["effect"] > 0.05
    assert told["naming"], [line["title"] for line in told["other"]]


@pytest.mark.parametrize("seed", range(3))
def test_of_a_healthy_network_nothing_is_said_that_fresh_images_do_not_show(seed: int, work: Path) -> None:
    told = examine(Case("digits", None, "clear", seed), work)
    assert told["failed"] == []
    assert [line["title"] for line in told["other"] if not line["held on fresh images"]] == []


def test_every_fault_has_all_strengths_and_seeds_and_healthy_ones_are_among_them() -> None:
    cases = all_cases()
    planted = sum(len(family.types) * len(STRENGTHS) * len(SEEDS[name]) for name, family in FAMILIES.items())
    assert len({case.key for case in cases}) == len(cases) == planted + sum(map(len, HEALTHY.values()))
    assert len(FAMILIES["digits"].types) >= 12
    assert len(HEALTHY["digits"]) >= 20
    assert any(case.fault is None for case in cases[:30])


def test_what_a_fault_strikes_is_some_images_and_never_all() -> None:
    for family in FAMILIES.values():
        made = family.images(200, 1)
        for fault, kind in family.types.items():
            if kind.measure == "struck":
                struck, rest = family.struck(fault, made, family.targets[0])
                assert struck.any()
                assert rest.any()
                assert not (struck & rest).any()


def test_shapes_are_drawn_the_same_from_one_seed_and_masks_cover_the_object() -> None:
    made, again = (FAMILIES["shapes"].images(64, 5) for _ in range(2))
    assert torch.equal(made.images, again.images)
    assert set(made.labels.tolist()) == set(range(8))
    share = (made.masks > 127).float().mean(dim=(1, 2, 3))
    assert bool((share > 0.02).all())
    assert bool((share < 0.6).all())


def test_a_title_names_a_fault_only_with_all_its_words() -> None:
    case = Case("digits", "rotation-weak-class", "clear", 0)
    data = images_of(case)
    assert names_the_fault(case, "Accuracy is 0.2 where class = 7 and rotation = 18 to 30.", [], data)
    assert not names_the_fault(case, "Accuracy is 0.2 where class = 3 and rotation = 18 to 30.", [], data)
    assert not names_the_fault(case, "The model is right on 20% of 70 images of class 7.", [], data)


def test_a_withheld_cause_must_be_in_the_evidence() -> None:
    case = Case("digits", "weak-texture", "clear", 0)
    data = images_of(case)
    struck = [
        name for name, texture in zip(data.ids, data.attributes["background"], strict=True) if texture == "checks"
    ]
    rest = [name for name in data.ids if name not in set(struck)]
    assert names_the_fault(case, "Right on 9% of images that are alike to it.", struck[:8] + rest[:4], data)
    assert not names_the_fault(case, "Right on 9% of images that are alike to it.", struck[:4] + rest[:8], data)
    assert not names_the_fault(case, "Right on 9% of images that are alike to it.", [], data)
    assert not names_the_fault(case, "The model is over-confident.", struck[:8], data)


def test_faults_of_the_data_are_where_they_should_be() -> None:
    noisy, clean = images_of(Case("digits", "test-labels", "clear", 0)), images_of(Case("digits", None, "clear", 0))
    changed = noisy.labels != clean.labels
    assert set(clean.labels[changed].tolist()) == {7}
    assert set(noisy.labels[changed].tolist()) == {3}
    copies = images_of(Case("digits", "contradicting-copies", "clear", 0))
    assert len(copies.labels) == 1320
    leaking = images_of(Case("digits", "leakage", "clear", 0))
    test_side = leaking.attributes["split"] == "test"
    assert torch.equal(leaking.images[torch.from_numpy(~test_side)], clean.images[torch.from_numpy(~test_side)])


def test_the_table_counts_what_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def put(case: Case, **told: object) -> None:
        blank = {
            "commit": "abc",
            "effect": 0.5,
            "naming": [],
            "other": [],
            "cpu_seconds": 10.0,
            "forward": 70000,
            "backward": 12000,
        }
        (tmp_path / f"{case.key}.json").write_text(json.dumps(blank | told))

    line = {"probe": "subgroup"}
    first, second, third = SEEDS["digits"]
    put(Case("digits", "backdoor", "clear", first), naming=[line])
    put(Case("digits", "backdoor", "clear", second))
    put(Case("digits", "backdoor", "clear", third), effect=0.01)
    for seed, held in zip(HEALTHY["digits"], (True, False), strict=False):
        put(Case("digits", None, "clear", seed), effect=None, other=[line | {"held on fresh images": held}])
    record(tmp_path, tmp_path / "out.json")
    table = json.loads((tmp_path / "out.json").read_text())["faults"]
    (row,) = [cells for cells in table["rows"] if cells[0] == "digits: backdoor"]
    assert row[1] == "1 / 2 (1), 0.50"
    assert row[2] == "not run"
    (unseen,) = [cells for cells in table["rows"] if cells[0] == f"digits: all but seed {first}"]
    assert unseen[1] == "0 / 1 (1)"
    assert "by commit: abc 5" in table["how"]
    assert "2 of 2 with a finding" in table["how"]
    assert "; 1 (" in table["how"]
    assert "10 s of one core, 70,000 forward and 12,000 backward" in table["how"]
    assert "subgroup 1" in capsys.readouterr().out
    assert "label-noise" not in NOT_OF_THE_FAULT
