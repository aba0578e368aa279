import numpy as np
import pytest

from snellen.errors import InvalidInput
from snellen.stats import bernoulli_sequence, bounded_sequence, wilson


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_bernoulli_sequence_covers_over_the_whole_path(p):
    rng = np.random.default_rng(0)
    repeats, n, missed = 400, 300, 0
    # The interval depends on (successes, n) only and contains p exactly when p is between its ends, so each pair
    # is computed once.
    known: dict[tuple[int, int], bool] = {}
    for _ in range(repeats):
        for t, s in enumerate(np.cumsum(rng.random(n) < p), start=1):
            if (s, t) not in known:
                low, high = bernoulli_sequence(int(s), t)
                known[s, t] = low <= p <= high
            if not known[s, t]:
                missed += 1
                break
    assert missed / repeats <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / repeats)


def test_a_fixed_sample_interval_does_not_survive_peeking():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        s = np.cumsum(rng.random(300) < 0.5)
        missed += any(
            not wilson(int(s[t - 1]), t).low <= 0.5 <= wilson(int(s[t - 1]), t).high for t in range(10, 301, 5)
        )
    assert missed / 200 > 0.15


def test_bernoulli_sequence_contains_the_mean_and_shrinks():
    widths = []
    for n in (10, 100, 1000, 10_000):
        low, high = bernoulli_sequence(9 * n // 10, n)
        assert low < 0.9 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.03
    assert bernoulli_sequence(0, 0) == (0.0, 1.0)
    assert bernoulli_sequence(0, 50).low == 0.0
    assert bernoulli_sequence(50, 50).high == 1.0


@pytest.mark.parametrize("draw", ["bernoulli", "beta", "constant"])
def test_bounded_sequence_covers_over_the_whole_path(draw):
    rng = np.random.default_rng(1)
    repeats, missed = 400, 0
    for _ in range(repeats):
        values, mean = {
            "bernoulli": ((rng.random(500) < 0.8).astype(float), 0.8),
            "beta": (rng.beta(10, 30, 500), 0.25),
            "constant": (np.full(500, 0.6), 0.6),
        }[draw]
        low, high = bounded_sequence(values)
        missed += bool(np.any((low > mean) | (high < mean)))
    assert missed / repeats <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / repeats)


def test_bounded_sequence_only_tightens_and_uses_a_small_variance():
    rng = np.random.default_rng(2)
    low, high = bounded_sequence(rng.beta(100, 100, 2000))
    assert np.all(np.diff(low) >= 0)
    assert np.all(np.diff(high) <= 0)
    coarse = bounded_sequence((rng.random(2000) < 0.5).astype(float))
    assert high[-1] - low[-1] < 0.5 * (coarse.high[-1] - coarse.low[-1])
    assert len(bounded_sequence([]).low) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: bernoulli_sequence(3, 2),
        lambda: bernoulli_sequence(1, 2, level=0),
        lambda: bernoulli_sequence(1, 2, prior=(0, 1)),
        lambda: bounded_sequence([0.5, 1.5]),
        lambda: bounded_sequence([0.5, float("nan")]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(InvalidInput):
        call()
