import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.optimize import minimize

from snellen.discovery._disparity_theory import dual_norm
from snellen.discovery.accuracy_disparity import (
    Mixture,
    accuracies,
    best_rule,
    class_biases,
    decompose,
    disparity,
    imbalanced_rows,
    one_step,
    scores_of,
    train_linear,
    undo_gap,
    who_paid,
)
from snellen.errors import InvalidInput
from snellen.stats import newcombe_difference

MU = np.array([0.9, -0.6, 0.3, 0.1])
ANY = np.random.default_rng


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_closed_form_is_what_simulation_gives(alpha, norm):
    mixture = Mixture(np.full(5, 0.6), 0.8, alpha)
    rule = best_rule(mixture, 2.0, 0.2, norm)
    x, y = mixture.draw(100_000, 100_000, ANY(0))
    for eps in (0.0, 0.2):
        attacked = x - eps * y[:, None] * (
            np.sign(rule.weights) if norm == "linf" else rule.weights / np.linalg.norm(rule.weights)
        )
        right = np.sign(attacked @ rule.weights + rule.bias) == y
        expected = accuracies(mixture, rule, eps, norm)
        assert abs(right[y == -1].mean() - expected.majority) < 0.01
        assert abs(right[y == 1].mean() - expected.minority) < 0.01


def test_stable_accuracies_agree_with_scipy():
    mixture = Mixture(np.array([1.0]), 0.5, 1.5)
    rule = best_rule(mixture)
    assert accuracies(mixture, rule).minority == pytest.approx(stats.levy_stable.cdf(2.0, 1.5, 0), abs=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("ratio", [1.0, 6.0])
def test_the_gaussian_rule_is_the_one_a_numeric_optimiser_finds(norm, ratio):
    mixture, eps = Mixture(MU, 0.7), 0.25

    def risk(parameters):
        found = accuracies(
            mixture, best_rule(mixture)._replace(weights=parameters[:-1], bias=parameters[-1]), eps, norm
        )
        return ratio * (1 - found.majority) + 1 - found.minority

    rule = best_rule(mixture, ratio, eps, norm)
    unit = np.linalg.norm(rule.weights)
    start = np.append(MU / np.linalg.norm(MU), 0.0)
    method = {"method": "Nelder-Mead", "options": {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 20000, "maxfev": 20000}}
    numeric = minimize(risk, start, **method)
    for _ in range(4):  # restarts, since the risk of linf has kinks
        numeric = minimize(risk, numeric.x / np.linalg.norm(numeric.x[:-1]), **method)
    length = np.linalg.norm(numeric.x[:-1])
    assert np.allclose(numeric.x[:-1] / length, rule.weights / unit, atol=1e-4)
    assert numeric.x[-1] / length == pytest.approx(rule.bias / unit, abs=1e-4)


def test_small_coordinates_are_dropped_under_linf():
    assert best_rule(Mixture(MU), eps=0.2, norm="linf").weights.tolist() == pytest.approx([0.7, -0.4, 0.1, 0.0])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_equal_classes_there_is_no_gap(norm):
    for eps in (0.0, 0.1, 0.5):
        assert accuracies(Mixture(MU), best_rule(Mixture(MU), 1.0, eps, norm)).gap == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_rise_of_the_gap_grows_with_eps_and_with_the_imbalance(norm):
    mixture = Mixture(np.full(4, 0.9))
    grid = np.array(
        [[accuracies(mixture, best_rule(mixture, r, e, norm)).gap for e in (0.0, 0.1, 0.2, 0.4)] for r in (1, 2, 5, 10)]
    )
    rise = grid - grid[:, :1]
    assert (np.diff(rise, axis=0) >= -1e-9).all()
    assert (np.diff(rise, axis=1) >= -1e-9).all()


def test_the_rise_does_not_grow_with_the_imbalance_for_ever():
    # against the card: both gaps tend to 1, so that their difference falls again (here from R of about 20 on)
    mixture = Mixture(np.array([1.645]))
    rise = [
        accuracies(mixture, best_rule(mixture, r, 0.8)).gap - accuracies(mixture, best_rule(mixture, r)).gap
        for r in (1, 10, 1e4)
    ]
    assert rise[0] < rise[2] < rise[1] - 0.05


def test_the_gap_of_heavy_tails_saturates_where_the_rule_answers_the_majority_only():
    cauchy = Mixture(np.full(4, 0.5), 1.0, 1.0)
    rule = best_rule(cauchy, 10.0)
    assert rule.bias == -np.inf
    assert accuracies(cauchy, rule) == (1.0, 0.0)
    assert best_rule(cauchy, 10.0, 0.2).bias == -np.inf  # so that robustness adds nothing to the gap


def test_the_offset_of_heavy_tails_is_the_least_risk_on_a_fine_grid():
    mixture = Mixture(np.full(3, 1.5), 1.0, 1.0)
    rule = best_rule(mixture, 2.0, 0.3)
    margin, scale = 4.5 - 0.3 * np.sqrt(3), 3.0
    offsets = -np.linspace(0, 100, 200_001)
    risk = 2 * stats.cauchy.cdf(-(margin - offsets) / scale) + stats.cauchy.cdf(-(margin + offsets) / scale)
    assert rule.bias == pytest.approx(offsets[risk.argmin()], abs=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_step_is_exact_and_within_the_budget(norm):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    w = torch.randn(7, generator=generator, dtype=torch.float64)
    y = torch.where(torch.arange(50) % 2 == 0, 1.0, -1.0).double()
    attacked = one_step(w, x, y, 0.3, norm)
    lost = y * (x @ w) - y * (attacked @ w)
    assert torch.allclose(lost, torch.full_like(lost, 0.3 * dual_norm(w.numpy(), norm)), atol=1e-9)
    size = torch.linalg.vector_norm(attacked - x, 2 if norm == "l2" else torch.inf, dim=1)
    assert size.max() <= 0.3 + 1e-6


def test_one_step_is_the_fast_gradient_step_of_foolbox():
    foolbox = pytest.importorskip("foolbox")
    linear = torch.nn.Linear(6, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 6, generator=torch.Generator().manual_seed(1)))
        linear.bias.zero_()
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.25
    label = torch.arange(20) % 2
    model = foolbox.PyTorchModel(linear.eval(), bounds=(-9, 9), device="cpu")
    w = (linear.weight[1] - linear.weight[0]).detach()
    for norm, attack in (
        ("linf", foolbox.attacks.LinfFastGradientAttack),
        ("l2", foolbox.attacks.L2FastGradientAttack),
    ):
        peer = attack(random_start=False).run(model, x, label, epsilon=0.1)
        assert torch.allclose(one_step(w, x, 2.0 * label - 1, 0.1, norm), peer, atol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_training_reaches_the_least_loss_on_its_own_adversarial_examples(norm):
    x, y = Mixture(MU).draw(300, 60, ANY(3))
    x, y = torch.from_numpy(x), torch.from_numpy(y).double()

    def loss(weights, bias):
        return F.softplus(-y * (one_step(weights, x, y, 0.2, norm) @ weights + bias)).mean()

    rule = train_linear(x, y, 0.2, norm)
    least = loss(torch.from_numpy(rule.weights), rule.bias)
    for seed in range(20):
        noise = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.05
        assert loss(torch.from_numpy(rule.weights) + noise[:4], rule.bias + noise[4]) > least - 1e-5


def test_without_a_budget_standard_and_robust_training_are_the_same():
    x, y = (torch.from_numpy(part) for part in Mixture(MU).draw(100, 50, ANY(4)))
    first, second = (train_linear(x, y, 0.0, norm) for norm in ("l2", "linf"))
    assert np.array_equal(first.weights, second.weights)
    assert first.bias == second.bias


def answers_with(labels, shares, rng):
    """Answers that are right on these shares of each class, otherwise the next class."""
    share = np.array(shares)[labels]
    return np.where(rng.random(len(labels)) < share, labels, (labels + 1) % len(shares))


def test_who_paid_names_the_class_and_clears_the_others():
    labels = np.repeat(np.arange(4), 150)
    before = answers_with(labels, [0.9] * 4, ANY(0))
    after = np.where(labels == 2, answers_with(labels, [0.9, 0.9, 0.5, 0.9], ANY(1)), before)
    paid = who_paid(labels, before, after)
    assert paid[0].label == 2
    assert paid[0].q_value < 0.001
    assert paid[0].lost.interval.low > 0.2
    assert all(payment.q_value > 0.05 and payment.lost.value == 0 for payment in paid[1:])
    assert paid[0].q_value >= paid[0].p_value


def test_a_model_beside_itself_pays_nothing():
    labels = np.repeat([0, 1], 60)
    answers = answers_with(labels, [0.8, 0.6], ANY(2))
    found = disparity(labels, answers, answers, 1, ANY(0))
    assert found.rise.value == found.lost.value == 0
    assert found.p_value == 1
    assert found.gap_before == found.gap_after


def test_the_rise_is_the_difference_of_the_gaps_and_its_interval_holds_it():
    labels = np.repeat([0, 1, 2], 200)
    before, after = answers_with(labels, [0.95, 0.9, 0.9], ANY(0)), answers_with(labels, [0.95, 0.6, 0.8], ANY(1))
    found = disparity(labels, before, after, 1, ANY(2), majority=0)
    assert found.rise.value == pytest.approx(found.gap_after.value - found.gap_before.value)
    assert found.rise.interval.low < found.rise.value < found.rise.interval.high
    assert found.rise.interval.low > 0.1
    assert found.p_value < 0.01
    right = [int((after == labels)[labels == c].sum()) for c in (0, 1)]
    assert found.gap_after.interval == newcombe_difference(right[0], 200, right[1], 200)


def test_the_rise_has_no_false_alarm_more_often_than_its_level():
    labels, alarms = np.repeat([0, 1], 60), 0
    for seed in range(40):
        rng = ANY(seed)
        alarms += disparity(labels, *(answers_with(labels, [0.9, 0.7], rng) for _ in range(2)), 1, rng).p_value <= 0.05
    assert alarms <= 6


def test_the_parts_are_told_apart():
    labels = np.repeat([0, 1], 300)
    standard = answers_with(labels, [0.95, 0.95], ANY(0))
    robust = answers_with(labels, [0.85, 0.85], ANY(1))
    skewed_standard, skewed_robust = (
        answers_with(labels, [0.97, 0.9], ANY(2)),
        answers_with(labels, [0.97, 0.6], ANY(3)),
    )
    parts = decompose(labels, (standard, robust), (skewed_standard, skewed_robust), 1, ANY(4))
    assert abs(parts.inherent.value - 0.1) < 0.05
    assert parts.inherent.interval.low > 0
    assert abs(parts.imbalance.value - 0.3) < 0.08
    assert parts.imbalance.interval.low > 0.1
    nothing = decompose(labels, (standard, standard), (skewed_standard, skewed_standard), 1, ANY(4))
    assert nothing.inherent.value == nothing.imbalance.value == 0


def linear_scores(rule, x):
    return np.stack([np.zeros(len(x)), x @ rule.weights + rule.bias], axis=1)


def test_a_gap_of_the_offset_is_undone_by_biases():
    mixture = Mixture(np.full(16, 0.4))
    x, y = (torch.from_numpy(part) for part in mixture.draw(600, 60, ANY(0)))
    standard, robust = (train_linear(x, y, eps) for eps in (0.0, 0.8))
    test, side = mixture.draw(600, 600, ANY(1))
    labels, ids = (side + 1) // 2, [str(row) for row in range(1200)]
    found = undo_gap(ids, labels, linear_scores(standard, test), linear_scores(robust, test), 1)
    assert found.plain.rise.interval.low > 0.05
    assert abs(found.recalibrated.gap_after.value) < 0.1
    assert found.effect.rise.interval.high < -0.1
    assert found.biases[1] > 0
    assert found.biases.sum() == pytest.approx(0)


def test_a_gap_of_the_features_is_not_undone_by_biases():
    rng = ANY(0)
    labels = np.repeat([0, 1, 2], 400)
    clean = np.eye(3)[labels] * 4 + rng.normal(size=(1200, 3))
    blurred = clean.copy()
    lost = (labels == 1) & (rng.random(1200) < 0.5)
    blurred[lost] = np.eye(3)[0] * 9 + rng.normal(size=(lost.sum(), 3))  # half of class 1 looks just like class 0
    found = undo_gap([str(row) for row in range(1200)], labels, clean, blurred, 1)
    assert found.plain.rise.value > 0.4
    assert found.recalibrated.rise.value > 0.25


def test_biases_level_classes_and_ignore_how_sure_the_model_is():
    rng = ANY(1)
    labels = np.repeat([0, 1], [500, 100])
    scores = np.stack([np.zeros(600), rng.normal(size=600) + np.where(labels == 1, 1.0, -1.0) - 1.5], axis=1)
    biases = class_biases(scores, labels)
    assert biases[1] - biases[0] == pytest.approx(1.5, abs=0.3)
    assert np.allclose(class_biases(scores * 20, labels) / 20, biases, atol=0.05)


def test_rows_have_the_ratio_asked_for():
    labels = ANY(0).integers(0, 3, 900)
    for ratio in (1, 2, 10):
        rows = imbalanced_rows(labels, 1, ratio, ANY(1))
        counts = np.bincount(labels[rows])
        assert counts[0] == counts[2] == pytest.approx(counts[1] * ratio, abs=ratio)
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: best_rule(Mixture(MU), eps=-0.1),
        lambda: best_rule(Mixture(MU), eps=float(np.linalg.norm(MU))),
        lambda: best_rule(Mixture(MU), eps=0.9, norm="linf"),
        lambda: best_rule(Mixture(MU), ratio=0.5),
        lambda: best_rule(Mixture(MU), norm="l1"),
        lambda: Mixture(MU, alpha=1.5),
        lambda: Mixture(np.zeros(3)),
        lambda: Mixture(MU, sigma=0),
        lambda: train_linear(torch.full((30, 2), torch.nan), torch.ones(30)),
        lambda: train_linear(torch.rand(30, 2), torch.ones(30)),
        lambda: train_linear(torch.rand(30, 2), torch.tensor([1.0, -1.0] * 15), eps=-1),
        lambda: imbalanced_rows(np.repeat([0, 1], 50), 1, 20, ANY(0)),
        lambda: imbalanced_rows(np.repeat([0, 1], 50), 1, 0.5, ANY(0)),
        lambda: imbalanced_rows(np.zeros(50, dtype=int), 0, 2, ANY(0)),
        lambda: disparity(np.zeros(50, dtype=int), np.zeros(50, dtype=int), np.zeros(50, dtype=int), 0, ANY(0)),
        lambda: disparity(np.repeat([0, 1], [50, 5]), np.zeros(55, dtype=int), np.zeros(55, dtype=int), 1, ANY(0)),
        lambda: who_paid(np.zeros(3, dtype=int), np.zeros(3, dtype=int), np.zeros(4, dtype=int)),
        lambda: scores_of(lambda x: x, torch.full((2, 2), torch.nan)),
        lambda: undo_gap(["a"], np.zeros(2, dtype=int), np.zeros((2, 2)), np.zeros((2, 2)), 1),
    ],
)
def test_impossible_input_is_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()
