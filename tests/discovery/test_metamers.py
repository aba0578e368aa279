from itertools import pairwise

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import nn

from snellen.discovery._metamer_scores import logistic_slope
from snellen.discovery._simulated_observer import chosen_roles, noisy_distances
from snellen.discovery._window_statistics import filter_bank
from snellen.discovery.metamers import (
    Answer,
    MetamerSynthesis,
    acceptance_level,
    balanced_trials,
    calibrate_noise,
    metamer_loss,
    read_answers,
    read_trials,
    score,
    simulate_answers,
    stimulus_name,
    synthesise,
    texforms,
    window_statistics,
    write_answers,
    write_stimuli,
    write_trials,
)
from snellen.errors import InvalidInput
from snellen.probe import function_methods

IDS = ("a", "b", "c")
NAMES = tuple(f"t{k}" for k in range(12))


def pictures(n=3, side=16, channels=3, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten()]
        network = nn.Sequential(*layers, nn.Linear(288, 48), nn.ReLU())
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------- synthesis


def test_a_start_at_the_target_has_no_loss_and_does_not_move(encoder):
    x = pictures()
    made = synthesise(encoder, x, IDS, MetamerSynthesis(steps=5, copies=1), start=x.unsqueeze(1))
    assert torch.equal(made.images[:, 0], x)
    assert float(made.loss.max()) == 0
    assert bool(made.converged.all())


def test_the_loss_falls_and_images_stay_images(encoder):
    made = synthesise(encoder, pictures(), IDS, MetamerSynthesis(steps=60, rate=0.3))
    assert made.images.shape == (3, 2, 3, 16, 16)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert bool((made.loss <= made.start_loss).all())
    assert bool((made.log.diff(dim=-1) <= 0).all())
    assert torch.equal(made.log[..., 0], made.start_loss)
    told = metamer_loss(encoder, made.images[:, 0], encoder(pictures()))
    assert torch.allclose(told, made.loss[:, 0], atol=1e-6)


def test_metamers_share_features_and_answers_and_differ_in_pixels(encoder):
    x = pictures()
    made = synthesise(encoder, x, IDS, MetamerSynthesis(steps=500, rate=0.3))
    assert torch.equal(made.converged, made.loss <= 0.1)
    assert made.excluded == int((~made.converged).sum()) <= 1  # a start may get stuck where units are off
    goal = encoder(x)
    for copy in range(2):
        done = made.converged[:, copy]
        features = encoder(made.images[:, copy])
        assert bool((nn.functional.cosine_similarity(features, goal)[done] >= 0.99).all())
        assert torch.equal(features.argmax(1)[done], goal.argmax(1)[done])
        assert bool(((made.images[:, copy] - x).square().mean(dim=(1, 2, 3)).sqrt() > 0.05).all())
    assert bool(((made.images[:, 0] - made.images[:, 1]).square().mean(dim=(1, 2, 3)).sqrt() > 0.05).all())


def test_metamers_of_a_linear_encoder_agree_in_its_row_space_only():
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(1)).double()
    x = (0.3 + 0.4 * pictures(channels=1, side=8)).double()
    made = synthesise(lambda images: images.flatten(1) @ weight.T, x, IDS, MetamerSynthesis(steps=4000, rate=0.3))
    basis = torch.linalg.svd(weight, full_matrices=False).Vh
    difference = (made.images[:, 0] - x).flatten(1)
    assert float((difference @ basis.T).abs().max()) < 1e-4
    assert float((difference @ weight.T).norm(dim=1).max()) < 1e-3
    assert bool((difference.norm(dim=1) > 0.5).all())  # the null space is free


def test_an_image_does_not_depend_on_its_batch(encoder):
    x, settings = pictures(), MetamerSynthesis(steps=20, rate=0.3, batch=2)
    whole = synthesise(encoder, x, IDS, settings)
    alone = synthesise(encoder, x[2:], IDS[2:], settings)
    assert torch.allclose(whole.images[2], alone.images[0], atol=1e-4)
    other = synthesise(encoder, x, IDS, settings, seed=1)
    assert not torch.allclose(whole.images, other.images, atol=0.05)


def test_metamers_lie_below_the_level_of_other_images_of_the_class(encoder):
    x = pictures(12)
    level = acceptance_level(encoder, x, torch.arange(12) % 3)
    features = encoder(x)
    by_hand = [
        float((features[i] - features[j]).norm() / features[j].norm())
        for i in range(12)
        for j in range(12)
        if i != j and i % 3 == j % 3
    ]
    assert level == pytest.approx(np.percentile(by_hand, 1), rel=1e-4)
    made = synthesise(encoder, x[:3], IDS, MetamerSynthesis(steps=400, rate=0.3))
    assert float(made.loss.max()) < level


def test_bad_synthesis_is_refused(encoder):
    x = pictures()

    @torch.no_grad()
    def dead(images):
        return encoder(images)

    cases = [
        ("other than zero", lambda: synthesise(lambda i: i.flatten(1) * 0, x, IDS)),
        ("differentiable", lambda: synthesise(dead, x, IDS)),
        ("different names", lambda: synthesise(encoder, x, ("a", "a", "b"))),
        (r"\[0, 1\]", lambda: synthesise(encoder, x * 2, IDS)),
        ("start", lambda: synthesise(encoder, x, IDS, start=x)),
        ("steps", lambda: MetamerSynthesis(steps=-1)),
        ("rate", lambda: MetamerSynthesis(rate=0)),
        ("two images", lambda: acceptance_level(encoder, x, torch.arange(3))),
        ("larger than they", lambda: texforms(x, IDS, 17)),
    ]
    for words, call in cases:
        with pytest.raises(InvalidInput, match=words):
            call()


# --------------------------------------------------------------------------------------------------------- statistics


def test_filters_see_contrast_only_and_the_oriented_ones_their_orientation():
    bank = filter_bank()
    assert float(bank.sum(dim=(2, 3)).abs().max()) < 1e-5
    x = torch.arange(24.0)
    upright = (0.5 + 0.5 * torch.sin(x * np.pi / 2.5)).expand(1, 1, 24, 24)
    response = nn.functional.conv2d(upright, bank).abs().mean(dim=(0, 2, 3))
    assert response[1] > 5 * response[3]  # the wave across against the wave down


def test_statistics_are_finite_with_finite_slopes_on_flat_images():
    x = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    statistics = window_statistics(x, 6)
    (slope,) = torch.autograd.grad(statistics.sum(), x)
    assert bool(statistics.isfinite().all())
    assert bool(slope.isfinite().all())


def test_a_window_of_the_whole_image_knows_its_mean_and_deviation():
    x = pictures(1, side=64, channels=1)
    statistics = window_statistics(x, 64)
    middle = statistics.view(1, -1, 2, 2)[0, :, 1, 1]
    assert float(middle[0]) == pytest.approx(float(x.mean()), abs=0.03)
    assert float(middle[6]) == pytest.approx(float(x.std()), abs=0.03)


def test_texforms_have_the_statistics_and_other_pixels():
    x = pictures(3, side=24)
    made = texforms(x, IDS, 12, MetamerSynthesis(steps=150, copies=1, rate=0.5))
    assert bool((made.loss < 0.5 * made.start_loss).all())
    assert bool(((made.images[:, 0] - x).square().mean(dim=(1, 2, 3)).sqrt() > 0.05).all())


# ---------------------------------------------------------------------------------------------------------- the tables


def test_right_answers_are_balanced_and_every_trial_shows_what_it_says():
    trials = balanced_trials("net", NAMES, (5, 10))
    assert len(trials) == len({trial.trial_id for trial in trials}) == 2 * 2 * 2 * 12
    for trial in trials:
        shown = (trial.first, trial.second, trial.third)
        assert len(set(shown)) == 2
        if trial.task == "oddity":
            assert shown.count(shown[trial.answer - 1]) == 1
        else:
            assert shown[trial.answer] == trial.first
        assert (stimulus_name(trial.target) in shown) == (trial.comparison == "original-synth")
    for places, task in ((3, "oddity"), (2, "matching")):
        cell = [t for t in trials if (t.task, t.comparison, t.eccentricity) == (task, "synth-synth", 5.0)]
        assert np.bincount([t.answer for t in cell])[1:].tolist() == [12 // places] * places
    assert trials == balanced_trials("net", NAMES, (5, 10))
    assert [t.eccentricity for t in trials] != sorted(t.eccentricity for t in trials)


def test_tables_and_answers_come_back_as_they_went(tmp_path):
    trials = balanced_trials("net", NAMES, (5, 10))
    write_trials(trials, tmp_path / "trials.csv")
    assert read_trials(tmp_path / "trials.csv") == trials
    answers = [Answer(trial.trial_id, "anna, 34", trial.answer) for trial in trials]
    write_answers(answers, tmp_path / "answers.csv")
    assert read_answers(tmp_path / "answers.csv", trials) == answers


def test_wrong_tables_and_answers_are_refused(tmp_path):
    trials = balanced_trials("net", NAMES, (5,), tasks=("matching",), comparisons=("synth-synth",))
    biased = [trial._replace(answer=1) for trial in trials]
    path = tmp_path / "x.csv"

    def returned(*answers):
        write_answers(answers, path)
        return read_answers(path, trials)

    one = trials[0].trial_id
    path_of_columns = tmp_path / "columns.csv"
    path_of_columns.write_text("trial_id,observer\n1,2\n")
    path_of_words = tmp_path / "words.csv"
    path_of_words.write_text(f"trial_id,observer,response\n{one},a,left\n")
    path_of_nothing = tmp_path / "nothing.csv"
    path_of_nothing.write_text(f"trial_id,observer,response\n{one},a,nan\n")
    path_short = tmp_path / "short.csv"
    path_short.write_text(f"trial_id,observer,response\n{one}\n")
    cases = [
        ("balanced", lambda: write_trials(biased, path)),
        ("balanced", lambda: score(biased, [Answer(one, "a", 1)])),
        ("none of them", lambda: returned(Answer("zz", "a", 1))),
        ("1 to 2", lambda: returned(Answer(one, "a", 3))),
        ("once", lambda: returned(Answer(one, "a", 1), Answer(one, "a", 2))),
        ("columns", lambda: read_answers(path_of_columns, trials)),
        ("number", lambda: read_answers(path_of_words, trials)),
        ("number", lambda: read_answers(path_of_nothing, trials)),
        ("without a value", lambda: read_answers(path_short, trials)),
        ("at least one", lambda: score(trials, [])),
        ("different names", lambda: balanced_trials("net", ("a", "a"), (5,))),
        ("degrees", lambda: balanced_trials("net", NAMES, (0,))),
    ]
    for words, call in cases:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_stimuli_are_written_and_flat_or_straying_ones_refused(tmp_path):
    trials = balanced_trials("net", ("t",), (5,), comparisons=("original-synth",))
    images = {"t/original": pictures(1)[0], "t/net/synth0": pictures(1, seed=1)[0]}
    write_stimuli(images, trials, tmp_path)
    stored = np.asarray(Image.open(tmp_path / "t" / "original.png")).transpose(2, 0, 1) / 255
    assert np.abs(stored - images["t/original"].numpy()).max() <= 0.5 / 255 + 1e-6
    with pytest.raises(InvalidInput, match="flat"):
        write_stimuli({**images, "t/original": torch.full((3, 8, 8), 0.5)}, trials, tmp_path)
    stray = [trial._replace(first="../t") for trial in trials]
    with pytest.raises(InvalidInput, match="stay in"):
        write_stimuli({**images, "../t": pictures(1)[0]}, stray, tmp_path / "inner")


# ---------------------------------------------------------------------------------------------------------- the scores


def test_accuracy_has_wilsons_interval_and_tells_chance():
    trials = balanced_trials("net", NAMES, (5, 10), tasks=("matching",), comparisons=("synth-synth",))
    answers = [
        Answer(t.trial_id, f"o{k}", t.answer if t.eccentricity == 5 or k % 2 else 3 - t.answer)
        for t in trials
        for k in range(6)
    ]
    near, far = score(trials, answers).cells
    assert (near.right, near.n, near.accuracy, near.reached_chance) == (72, 72, 1.0, False)
    assert (far.right, far.n, far.reached_chance) == (36, 72, True)
    (slope,) = score(trials, answers[::-1]).slopes
    assert slope.log_odds < 0
    assert slope.interval is not None
    assert slope.interval.high < 0
    few = [answer for answer in answers if answer.observer in ("o0", "o1")]
    assert score(trials, few).slopes[0].interval is None


def test_slopes_agree_with_statsmodels():
    levels = np.array([5.0, 10.0, 20.0, 30.0])
    right, total = np.array([460.0, 410, 330, 280]), np.full(4, 500.0)
    ours = logistic_slope(levels, np.stack([total - right, right])[:, None])[0]
    counts = np.stack([right + 0.5, total - right + 0.5], axis=1)
    peer = sm.GLM(counts, sm.add_constant(levels), family=sm.families.Binomial()).fit()
    assert ours == pytest.approx(peer.params[1], rel=1e-6)


# ---------------------------------------------------------------------------------------------- the simulated observer


def test_distances_are_distributed_as_those_of_vectors_with_noise():
    rng, size, delta, noise = np.random.default_rng(0), 7, 3.0, 0.8
    n = 4000
    vectors = rng.normal(size=(3, n, size))
    vectors[2, :, 0] += delta / noise
    direct = [((vectors[a] - vectors[b]) ** 2).sum(axis=1) for a, b in ((0, 1), (0, 2), (1, 2))]
    ours = noisy_distances(np.array([delta]), size, noise, n, rng)
    for found, expected in zip(ours, direct, strict=True):
        assert ks_2samp(found[0], expected).pvalue > 1e-3
    assert ks_2samp((ours[0] - ours[1])[0], direct[0] - direct[1]).pvalue > 1e-3
    assert ks_2samp((ours[1] - ours[2])[0], direct[1] - direct[2]).pvalue > 1e-3


@pytest.mark.parametrize(("task", "chance", "right"), [("oddity", 1 / 3, 2), ("matching", 1 / 2, 1)])
def test_same_images_are_told_apart_by_chance_and_different_ones_without_noise_always(task, chance, right):
    rng, draws = np.random.default_rng(1), 20_000
    same = (chosen_roles(np.zeros(1), 50, 1.0, draws, task, rng) == right).mean()
    assert abs(same - chance) <= 3 * np.sqrt(chance * (1 - chance) / draws)
    assert (chosen_roles(np.ones(1), 50, 1e-4, 500, task, rng) == right).all()


def textures():
    """Two samples each of twelve noises of one texture: alike where windows are large."""
    return {
        stimulus_name(name, "net" * (copy >= 0), copy): pictures(1, 32, 1, seed=7 * place + copy + 1)[0]
        for place, name in enumerate(NAMES)
        for copy in (-1, 0)
    }


def test_textures_are_told_apart_less_well_in_the_periphery():
    images = textures()
    trials = balanced_trials("net", NAMES, (4, 8, 16, 28), comparisons=("original-synth",))
    reference = [t for t in trials if t.eccentricity == 4 and t.task == "matching"]
    noise = calibrate_noise(reference, images, 2.0)
    answers = simulate_answers(trials, images, noise, 2.0, observers=60)
    scores = score(trials, answers)
    assert all(answer.observer.startswith("simulated") for answer in answers)
    for task in ("oddity", "matching"):
        curve = [cell.accuracy for cell in scores.cells if cell.task == task]
        assert all(far <= near + 0.03 for near, far in pairwise(curve))
        assert curve[-1] < curve[0] - 0.1
    nearest = next(cell for cell in scores.cells if cell.task == "matching" and cell.eccentricity == 4)
    assert nearest.accuracy == pytest.approx(0.9, abs=0.04)


def test_the_observer_of_the_card_loses_even_other_textures_in_the_periphery():
    # The card fixes the noise of a statistic where windows are small. Larger windows are fewer, so that even pictures
    # that no pooling makes alike fall towards chance, and standard metamers cannot stay far above it.
    stripes = (0.5 + 0.5 * torch.sin(torch.arange(32.0) * np.pi / 2.5)).expand(1, 32, 32)
    images = {name: stripes if name.endswith("synth0") else x for name, x in textures().items()}
    trials = balanced_trials("net", NAMES, (4, 28), tasks=("matching",), comparisons=("original-synth",))
    noise = calibrate_noise([t for t in trials if t.eccentricity == 4], images, 2.0)
    near, far = score(trials, simulate_answers(trials, images, noise, 2.0, observers=60)).cells
    assert near.accuracy == pytest.approx(0.9, abs=0.04)
    assert far.accuracy < 0.75


def test_an_answer_does_not_depend_on_the_other_trials():
    images = textures()
    trials = balanced_trials("net", NAMES, (4, 8), comparisons=("original-synth",))
    whole = simulate_answers(trials, images, 0.5, 2.0, observers=2)
    part = simulate_answers(trials[:5], images, 0.5, 2.0, observers=2)
    assert part == whole[:10]


def test_a_simulation_that_cannot_be_is_refused():
    images = textures()
    trials = balanced_trials("net", NAMES, (4,), comparisons=("original-synth",))
    twins = dict.fromkeys(images, next(iter(images.values())))
    cases = [
        ("noise", lambda: simulate_answers(trials, images, 0.0, 2.0)),
        ("missing", lambda: simulate_answers(trials, {}, 1.0, 2.0)),
        ("above chance", lambda: calibrate_noise(trials, images, 2.0, accuracy=0.4)),
        ("must differ", lambda: calibrate_noise(trials, twins, 2.0)),
        ("larger than they", lambda: simulate_answers(trials, images, 1.0, 30.0)),
    ]
    for words, call in cases:
        with pytest.raises(InvalidInput, match=words):
            call()


def test_the_method_is_listed():
    assert function_methods()["discovery/metamers"].card == "metameric-robust-features"
