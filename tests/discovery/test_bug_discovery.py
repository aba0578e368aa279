"""Bugs found by drawing, describing and drawing again: what is planted is named, and chance is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from torch import Tensor

from snellen.demo.digits import draw_scene, render
from snellen.discovery._failure_sentences import candidates, clusters, details_of, edits
from snellen.discovery._scenes import PHRASES, Description, attribute_codes
from snellen.discovery._trials import Purpose, plan_shots
from snellen.discovery.bug_discovery import (
    TEMPLATES,
    Bug,
    BugReport,
    BugSearch,
    DiffusersGenerator,
    DigitScenes,
    TransformersCaptioner,
    UndrawnSentence,
    adversarial_set,
    find_bugs,
    train_captioner,
    transfer_table,
)
from snellen.errors import InvalidInput

CLASSES = ("cat", "dog", "bird")
GROUNDS = ("on snow", "on grass", "on sand", "on stone")
LIGHTS = ("at noon", "at night")
FAST = BugSearch(
    templates=("a photo of a {}",), base_images=400, test_images=100, batch=400, other_classes=2, min_effect=0.0
)


def draw(prompt: str, n: int, seed: int) -> Tensor:
    """Pictures `[n, 3, 1, 2]` that spell out class, ground, light and a random number."""
    rng = np.random.default_rng(seed)
    words = prompt.removeprefix("a photo of a ")
    name, _, rest = words.partition(" ")
    codes = [np.full(n, CLASSES.index(name)), rng.integers(0, 4, n), rng.integers(0, 2, n)]
    for detail in rest.split(", ") if rest else []:
        for place, known in ((1, GROUNDS), (2, LIGHTS)):
            if detail in known:
                if rest.count(detail[:3]) > 1 and place == 1:
                    raise UndrawnSentence(f"two grounds in {prompt!r}")
                codes[place] = np.full(n, known.index(detail))
    images = torch.zeros(n, 3, 1, 2)
    for place, values in enumerate(codes):
        images[:, place, 0, 0] = torch.from_numpy(values) / 10
    images[:, 0, 0, 1] = torch.from_numpy(rng.random(n)).float()
    return images


def read(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = (images[:, :, 0, 0] * 10).round().long()
    return codes[:, 0], codes[:, 1], codes[:, 2], images[:, 0, 0, 1]


def say(images: Tensor) -> list[str]:
    names, grounds, lights, _ = (values.tolist() for values in read(images))
    return [f"a {CLASSES[a]} {GROUNDS[b]}, {LIGHTS[c]}" for a, b, c in zip(names, grounds, lights, strict=True)]


def embed(images: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(read(images)[1], 4) + 0.1 * images[:, :1, 0, 1]


def chance(images: Tensor) -> Tensor:
    """Wrong on one image in ten, whatever is in it."""
    label, _, _, number = read(images)
    return torch.where(number < 0.1, (label + 1) % 3, label)


def planted(images: Tensor) -> Tensor:
    """A cat on snow is a dog in 80 % of the pictures; else as `chance`, and anything on stone at night is a bird."""
    label, ground, light, number = read(images)
    answer = torch.where((label == 0) & (ground == 0) & (number < 0.8), torch.ones_like(label), chance(images))
    return torch.where((ground == 3) & (light == 1), 2, answer)


def search(model: object, seed: int = 0, settings: BugSearch = FAST, **more: object) -> BugReport:
    return find_bugs(model, CLASSES, draw, say, embed, settings=settings, seed=seed, **more)


@pytest.fixture(scope="module")
def report() -> BugReport:
    return search(planted, settings=replace(FAST, min_effect=0.1))


def test_errors_that_depend_on_nothing_give_no_bug() -> None:
    runs = [search(chance, seed, replace(FAST, base_images=200), classes=["cat"]) for seed in range(200)]
    assert sum(run.sentences for run in runs) > 1000
    found = np.mean([len(run.bugs) > 0 for run in runs])
    assert found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_planted_bug_is_named_and_its_interval_covers_the_true_rate() -> None:
    named, covered = [], []
    for seed in range(60):
        snow = [
            bug
            for bug in search(planted, seed, replace(FAST, rounds=1), classes=["cat"]).bugs
            if bug.details == ("on snow",)
        ]
        named.append(bool(snow))
        covered += [bug.interval.low <= 0.8 <= bug.interval.high for bug in snow]
    assert np.mean(named) >= 0.95
    assert np.mean(covered) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 60)


def test_both_planted_bugs_lead_the_report_without_their_narrower_forms(report: BugReport) -> None:
    told = {(bug.true_class, bug.details, bug.wrong_class) for bug in report.bugs}
    assert ("cat", ("on snow",), "dog") in told
    assert ("dog", ("on stone", "at night"), "bird") in told
    assert not [bug for bug in report.bugs if set(bug.details) > {"on snow"}]
    snow = next(bug for bug in report.bugs if bug.details == ("on snow",))
    assert snow.sentence == "a photo of a cat on snow"
    assert snow.lift == pytest.approx(0.8 / (0.25 * 0.8 + 0.625 * 0.1 + 0.125), rel=0.2)
    assert snow.lift_interval.low < snow.lift < snow.lift_interval.high
    assert '"a photo of a cat on snow"' in str(snow)


def test_details_that_drive_the_answer_are_told_from_those_that_need_the_class(report: BugReport) -> None:
    snow = next(bug for bug in report.bugs if bug.details == ("on snow",))
    stone = next(bug for bug in report.bugs if bug.true_class == "cat" and "on stone" in bug.details)
    assert not snow.spurious()
    assert stone.spurious()
    assert [other.name for other in stone.others] == ["dog"]  # for birds "bird" is right


def test_mining_and_testing_never_share_a_seed(report: BugReport) -> None:
    mined = plan_shots(["a photo of a cat"], 1000, 10, 0, Purpose.MINING)
    tested = plan_shots(["a photo of a cat"], 1000, 10, 0, Purpose.TESTING)
    assert len({shot.seed for shot in (*mined, *tested)}) == 200
    assert all(shot.seed % 2 == 1 for bug in report.bugs for shot in bug.shots)
    assert all(shot.seed % 2 == 0 for shot in mined)


def test_the_same_seed_gives_the_same_report_and_a_replay_the_same_count(report: BugReport) -> None:
    again = search(planted, settings=replace(FAST, min_effect=0.1))
    assert again == report
    for bug in report.bugs:
        assert bug.replay(planted).failures == bug.failures
        assert bug.replay(lambda images: read(images)[0]).failures == 0
        assert len(bug.examples) == min(8, bug.failures)


def test_p_values_equal_those_of_scipy(report: BugReport) -> None:
    for bug in report.bugs:
        table = [[bug.failures, bug.n - bug.failures], [bug.base_failures, bug.base_n - bug.base_failures]]
        assert bug.p_value == pytest.approx(scipy_stats.fisher_exact(table, "greater")[1])
        assert bug.p_adjusted >= bug.p_value


def test_the_interval_shrinks_with_the_root_of_the_budget() -> None:
    widths = {}
    for n in (200, 800):
        settings = replace(FAST, test_images=n, rounds=1)
        bugs = search(planted, settings=settings, classes=["cat"]).bugs
        snow = next(bug for bug in bugs if bug.details == ("on snow",))
        widths[n] = snow.interval.high - snow.interval.low
    assert widths[200] / widths[800] == pytest.approx(2, rel=0.2)


def test_adversarial_set_and_transfer_table_come_from_the_same_images(report: BugReport) -> None:
    found = adversarial_set(report.bugs, planted)
    assert bool((planted(found.images) != found.labels).all())
    assert len(found.sentences) == len(found.labels) == sum(bug.failures for bug in report.bugs)
    table = transfer_table(report.bugs, {"itself": planted, "perfect": lambda images: read(images)[0]})
    assert table["itself"].tolist() == [bug.rate for bug in report.bugs]
    assert not table["perfect"].any()
    assert len(adversarial_set([], planted).images) == 0


def test_accepted_answers_are_no_failures() -> None:
    accepted = search(planted, classes=["cat"], accepted={"cat": ["dog"]})
    assert not [bug for bug in accepted.bugs if bug.details == ("on snow",)]


def test_unrealistic_images_are_dropped_and_counted() -> None:
    report = search(planted, classes=["cat"], realism=lambda images, name: images[:, 0, 0, 1])
    share = report.unrealistic / (400 + 100 * report.sentences)
    assert share == pytest.approx(0.05, abs=0.02)
    assert all(bug.base_n == 380 and bug.n < 100 and bug.replay(planted).n == bug.n for bug in report.bugs)


def test_labels_and_scores_give_the_same_report(report: BugReport) -> None:
    def scores(images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(planted(images), 3).float()

    assert search(scores, settings=replace(FAST, min_effect=0.1)) == report


def test_a_class_that_fails_plainly_is_skipped_with_its_reason() -> None:
    report = search(lambda images: torch.where(read(images)[0] == 1, 2, planted(images)))
    assert list(report.skipped) == ["dog"]
    assert "preprocessing" in report.skipped["dog"]
    with pytest.raises(InvalidInput, match="searched"):
        search(lambda images: torch.where(read(images)[0] == 1, 2, 1))


def test_captions_without_details_are_counted_and_not_tried() -> None:
    report = find_bugs(planted, CLASSES, draw, lambda images: [""] * len(images), embed, settings=FAST)
    assert report.speechless > 0
    assert report.sentences == 0
    assert report.bugs == ()


def test_what_cannot_be_is_refused() -> None:
    for changed in ({"test_images": 19}, {"base_images": 5}, {"alpha": 0.0}, {"templates": ("a photo",)},
                    {"realism_quantile": 0.9}, {"min_effect": 1.0}, {"batch": 0}):  # fmt: skip
        with pytest.raises(InvalidInput, match=next(iter(changed))):
            replace(FAST, **changed)
    with pytest.raises(InvalidInput, match="holds every class"):
        search(planted, accepted={"cat": ["dog", "bird"]})
    with pytest.raises(InvalidInput, match="classes"):
        search(planted, classes=["cow"])
    with pytest.raises(InvalidInput, match="model must give"):
        search(lambda images: torch.full((len(images), 3), torch.nan))
    with pytest.raises(InvalidInput, match="model must give"):
        search(lambda images: torch.full((len(images),), 3))
    with pytest.raises(InvalidInput, match="take it from find_bugs"):
        Bug("a", "cat", (), "dog", 1.0, 1, 1, 0, 1, 1.0, 1.0, ()).replay(planted)


@pytest.mark.parametrize("spoil", [lambda x: x[:, :1], lambda x: x[1:], lambda x: x + 2, lambda x: x * torch.nan])
def test_a_generator_of_wrong_pictures_is_refused(spoil: object) -> None:
    with pytest.raises(InvalidInput, match="generator must give"):
        find_bugs(planted, CLASSES, lambda *of: spoil(draw(*of)), say, embed, settings=FAST)


def test_a_captioner_or_embedder_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="captioner"):
        find_bugs(planted, CLASSES, draw, lambda images: ["a cat"], embed, settings=FAST)
    with pytest.raises(InvalidInput, match="embedder"):
        find_bugs(planted, CLASSES, draw, say, lambda images: images, settings=FAST)


def test_details_are_what_a_caption_says_beside_the_class() -> None:
    assert details_of("A fly sitting on a Flower.", "fly") == ("sitting on a flower",)
    assert details_of("a bug on a flower", "fly") == ("on a flower",)
    assert details_of("the digit 7 on stripes, upright, upright", "7") == ("on stripes", "upright")
    assert details_of("a photo", "fly") == details_of("  ", "fly") == ()


def test_clusters_are_the_directions_and_one_when_none_stands_out() -> None:
    rng = np.random.default_rng(0)
    apart = np.repeat(np.eye(3), [20, 10, 3], axis=0) * rng.uniform(0.5, 2, (33, 1)) + rng.normal(0, 0.01, (33, 3))
    assert next(group.tolist() for group in clusters(apart, 5)) == list(range(20))
    assert [len(group) for group in clusters(rng.normal(size=(30, 40)), 5)] == [30]
    assert clusters(apart[:4], 5) == []
    assert [len(group) for group in clusters(np.ones((12, 3)), 5)] == [12]


def test_candidates_hold_the_typical_caption_and_the_common_details() -> None:
    said = [("on snow", "at noon"), ("on snow", "at night"), ("on snow", "at noon")]
    assert candidates(said, 3) == [("on snow", "at noon"), ("on snow",), ("at noon",)]
    assert candidates([("on a flower",)] * 3, 4) == [("on a flower",)]
    assert candidates([], 4) == []
    assert edits(("a", "b"), ("b", "c")) == [("b",), ("a",), ("a", "b", "c")]
    assert edits(("a",), ()) == []


@given(st.integers(0, 9), st.fixed_dictionaries({}, optional={n: st.sampled_from(list(v)) for n, v in PHRASES.items()}))
def test_reading_and_printing_a_scene_are_inverses(digit: int, pinned: dict[str, str]) -> None:
    description = Description(digit, pinned)
    assert Description.parse(str(description)) == description
    assert str(Description.parse(str(description))) == str(description)


@pytest.mark.parametrize("text", ["a 7", "the digit 77", "the digit", "the digit 7 on fire", "the digit 7x",
                                  "the digit 7 on stripes, on checks", "the digit 7, upright", ""])  # fmt: skip
def test_sentences_outside_the_grammar_are_not_drawn(text: str) -> None:
    with pytest.raises(UndrawnSentence):
        DigitScenes()(text, 2, 0)


def test_scenes_show_what_the_sentence_says() -> None:
    pinned = {name: list(values)[-1] for name, values in PHRASES.items()}
    scene = DigitScenes().draw(Description(4, pinned), 50, np.random.default_rng(0))
    for name, codes in attribute_codes(scene).items():
        assert set(codes) == {4 if name == "digit" else len(PHRASES[name]) - 1}
    images = DigitScenes()(TEMPLATES[0].format(4), 5, 3)
    assert images.shape == (5, 3, 32, 32)
    assert torch.equal(images, DigitScenes()(TEMPLATES[0].format(4), 5, 3))
    assert not torch.equal(images, DigitScenes()(TEMPLATES[0].format(4), 5, 4))


def test_the_captioner_reads_the_attributes_of_scenes() -> None:
    captioner = train_captioner(images=1500, epochs=3)
    rng = np.random.default_rng(3)
    scene = draw_scene(300, "test", rng)
    images = render(scene, "test", rng)[0]
    told = [Description.parse(text) for text in captioner.caption(images)]
    for name, least in (("background", 0.7), ("tint", 0.8), ("tag", 0.9), ("position", 0.7)):
        read = [list(PHRASES[name]).index(description.pinned[name]) for description in told]
        assert np.mean(np.array(read) == attribute_codes(scene)[name]) > least


def test_a_diffusers_pipeline_draws_by_seed_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        tokenizer=transformers.CLIPTokenizer(
            str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    generator = DiffusersGenerator(pipeline, steps=2)
    images = generator("a cat on snow", 2, 5)
    assert images.shape == (2, 3, 16, 16)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert torch.equal(images, generator("a cat on snow", 2, 5))
    assert not torch.equal(images, generator("a cat on snow", 2, 6))
    assert not torch.equal(images[0], images[1])
    pipeline.save_pretrained(tmp_path / "saved")
    again = DiffusersGenerator.from_folder(tmp_path / "saved", steps=2)("a cat on snow", 2, 5)
    torch.testing.assert_close(again, images, atol=1e-4, rtol=0)


def test_a_transformers_captioner_comes_from_a_folder_and_repeats_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "on", "snow", "sand", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32, "projection_dim": 16,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.BlipConfig(text_config=text, vision_config=vision)
    transformers.BlipForConditionalGeneration(config).save_pretrained(tmp_path)
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)

    captioner = TransformersCaptioner.from_folder(tmp_path, max_new_tokens=5)
    images = torch.rand(3, 3, 20, 20)
    captions = captioner(images)
    assert len(captions) == 3
    assert all(set(caption.split()) <= set(words) for caption in captions)
    assert captioner(images) == captions


def test_folders_without_a_model_are_refused_and_never_looked_up(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    for adapter in (TransformersCaptioner, DiffusersGenerator):
        with pytest.raises(InvalidInput, match="folder must hold"):
            adapter.from_folder(tmp_path)
        with pytest.raises(InvalidInput, match="folder must hold"):
            adapter.from_folder(Path("some/model"))
