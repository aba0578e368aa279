from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snellen.errors import InvalidInput
from snellen.probe import function_methods
from snellen.shift.modality_preference import (
    CLEAN,
    AdditiveModel,
    Condition,
    Lipschitz,
    ModalityPreference,
    certified_radius,
    empirical_lipschitz,
    estimated_radius,
    evaluate,
    l2_attack,
    margin_loss,
    margin_shares,
    normalise_head,
    spectral_lipschitz,
    vulnerability,
)

K = 5
SIZES = {"image": 12, "sound": 7}


def additive(seed: int, *, hidden: int | None = None, signs: bool = True) -> AdditiveModel:
    """Double precision; linear encoders, or with one hidden layer."""
    g = torch.Generator().manual_seed(seed)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=False).double().requires_grad_(False)
        layer.weight.copy_(torch.randn(outputs, inputs, generator=g).double() / inputs**0.5)
        return layer

    def encoder(size: int) -> nn.Module:
        return linear(size, 8) if hidden is None else nn.Sequential(linear(size, hidden), nn.ReLU(), linear(hidden, 8))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    scales = {name: drawn(K) if signs else drawn(K).abs() for name in SIZES}
    return AdditiveModel({n: encoder(s) for n, s in SIZES.items()}, {n: drawn(K, 8) for n in SIZES}, scales, drawn(K))


def samples(n: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, size, generator=g).double() for name, size in SIZES.items()}


def answered(model: AdditiveModel, n: int = 40) -> tuple[dict[str, Tensor], Tensor]:
    """Samples with the model's own answers as labels."""
    inputs = samples(n)
    return inputs, model(inputs).argmax(1)


def test_it_is_known_as_a_function_method() -> None:
    assert function_methods()["shift/modality-preference"].module == "snellen.shift.modality_preference"


# heads and loss


@given(k=st.integers(1, 8), d=st.integers(2, 20), seed=st.integers(0, 99))
def test_rows_of_the_head_have_mean_zero_and_length_one(k: int, d: int, seed: int) -> None:
    head = normalise_head(torch.randn(k, d, generator=torch.Generator().manual_seed(seed)) + 3)
    assert torch.allclose(head.mean(1), torch.zeros(k), atol=1e-5)
    assert torch.allclose(head.norm(dim=1), torch.ones(k), atol=1e-5)


@given(k=st.integers(1, 8), extra=st.integers(1, 12), seed=st.integers(0, 99))
def test_rows_of_the_full_head_are_orthonormal_with_mean_zero(k: int, extra: int, seed: int) -> None:
    weight = torch.randn(k, k + extra, generator=torch.Generator().manual_seed(seed)).double()
    head = normalise_head(weight, "full")
    assert torch.allclose(head @ head.T, torch.eye(k).double(), atol=1e-4)
    assert torch.allclose(head.mean(1), torch.zeros(k).double(), atol=1e-6)


def test_as_many_classes_as_features_cannot_be_orthonormal_after_centring() -> None:
    """The card asks for d >= K; centred rows lie in d - 1 dimensions, so d > K is needed."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert int(torch.linalg.matrix_rank(weight)) == 6
    assert int(torch.linalg.matrix_rank(weight - weight.mean(1, keepdim=True))) == 5
    with pytest.raises(InvalidInput, match="K < d"):
        normalise_head(weight, "full")


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_a_row_of_equal_entries_is_refused(value: float) -> None:
    weight = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    weight[1] = value
    with pytest.raises(InvalidInput, match="equal entries"):
        normalise_head(weight)


def test_the_margin_loss_is_the_papers_sum_of_exponentials() -> None:
    g = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(9, K, generator=g).double() * 3 for name in SIZES}
    labels = torch.randint(0, K, (9,), generator=g)
    inner = sum((s - s.gather(1, labels[:, None])).exp().sum(1) - 1 for s in scores.values())
    assert isinstance(inner, Tensor)
    assert float(margin_loss(scores, labels)) == pytest.approx(float((inner + 1e-5).log().mean()), abs=1e-8)


@pytest.mark.parametrize("size", [100.0, 1e4])
def test_the_margin_loss_and_its_gradient_are_finite_for_large_scores(size: float) -> None:
    s = (torch.eye(K) * size).requires_grad_()
    for shift in (0, 1):
        loss = margin_loss({"image": s, "sound": s}, (torch.arange(K) + shift) % K)
        (gradient,) = torch.autograd.grad(loss, s)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())
    assert float(loss.detach()) == pytest.approx(size + math.log(2), rel=1e-5)


# constants and radii


def test_spectral_constants_of_linear_encoders_are_exact_and_seen_on_any_sample() -> None:
    model = additive(0)
    proven, seen = spectral_lipschitz(model), empirical_lipschitz(model, [samples(3)])
    assert proven.sound
    assert not seen.sound
    for name, encoder in model.encoders.items():
        assert isinstance(encoder, nn.Linear)
        assert torch.allclose(proven.tau[name], (model.heads[name] @ encoder.weight).norm(dim=1))
        assert torch.allclose(proven.tau[name], seen.tau[name])


@pytest.mark.parametrize("seed", range(4))
def test_no_gradient_exceeds_the_spectral_constant(seed: int) -> None:
    model = additive(seed, hidden=10)
    proven, seen = spectral_lipschitz(model), empirical_lipschitz(model, [samples(200, 1), samples(200, 2)])
    one = empirical_lipschitz(model, [samples(200, 1)])
    for name in SIZES:
        assert bool((seen.tau[name] <= proven.tau[name]).all())
        assert bool((one.tau[name] <= seen.tau[name]).all())
        assert bool((seen.tau[name] > 0).all())


def test_scales_do_not_enter_the_constants() -> None:
    model = additive(1, hidden=10)
    other = AdditiveModel(model.encoders, model.heads, {n: 7 * a for n, a in model.scales.items()}, model.bias)
    for name, tau in empirical_lipschitz(model, [samples(50)]).tau.items():
        assert torch.equal(tau, empirical_lipschitz(other, [samples(50)]).tau[name])


@given(seed=st.integers(0, 200), hidden=st.sampled_from([None, 6]))
@settings(max_examples=40, deadline=None)
def test_the_radius_is_positive_exactly_where_the_answer_is_right(seed: int, hidden: int | None) -> None:
    model = additive(seed, hidden=hidden)
    inputs = samples(30, seed)
    labels = torch.randint(0, K, (30,), generator=torch.Generator().manual_seed(seed))
    radius = certified_radius(model, inputs, labels, spectral_lipschitz(model))
    right = model(inputs).argmax(1) == labels
    assert torch.equal(radius.joint > 0, right)
    assert not bool(radius.infinite.any())
    for alone in radius.unimodal.values():
        assert bool((alone.abs() >= radius.joint.abs())[right].all())


@pytest.mark.parametrize("hidden", [None, 10])
def test_no_attack_inside_the_certified_radius_flips_the_answer(hidden: int | None) -> None:
    model = additive(2, hidden=hidden)
    inputs, labels = answered(model)
    radius = certified_radius(model, inputs, labels, spectral_lipschitz(model))
    attacks = [(tuple(SIZES), radius.joint), *(((name,), r) for name, r in radius.unimodal.items())]
    g = torch.Generator().manual_seed(0)
    for attacked, reach in attacks:
        for _ in range(1000):
            noise = {name: torch.randn(40, SIZES[name], generator=g).double() for name in attacked}
            length = torch.cat(list(noise.values()), dim=1).norm(dim=1)
            moved = {name: inputs[name] + noise[name] * (0.999999 * reach / length)[:, None] for name in attacked}
            assert torch.equal(model({**inputs, **moved}).argmax(1), labels)
        for i in range(len(labels)):
            one = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
            moved = l2_attack(model, one, labels[i : i + 1], attacked, 0.999999 * float(reach[i]), steps=20, step=0.25)
            assert int(model(moved).argmax(1)) == int(labels[i])


def test_the_exact_radius_of_a_linear_model_is_at_least_the_certified_one_and_flips_just_beyond() -> None:
    model = additive(3)
    inputs, labels = answered(model)
    radius = certified_radius(model, inputs, labels, spectral_lipschitz(model)).joint
    maps = {n: model.scales[n][:, None] * model.heads[n] @ e.weight for n, e in model.encoders.items()}
    logits = model(inputs)
    for i, y in enumerate(labels.tolist()):
        normals = {k: torch.cat([m[y] - m[k] for m in maps.values()]) for k in range(K) if k != y}
        exact = {k: float((logits[i, y] - logits[i, k]) / normal.norm()) for k, normal in normals.items()}
        k = min(exact, key=lambda rival: exact[rival])
        assert exact[k] >= float(radius[i]) * (1 - 1e-9)

        step = -1.001 * exact[k] * normals[k] / normals[k].norm()
        parts = step.split(list(SIZES.values()))
        moved = {name: inputs[name][i : i + 1] + part for name, part in zip(SIZES, parts, strict=True)}
        assert int(model(moved).argmax(1)) != y


def test_the_radius_is_exact_where_the_two_rows_are_opposite() -> None:
    encoders = {"image": nn.Linear(4, 3, bias=False).double(), "sound": nn.Linear(2, 3, bias=False).double()}
    g = torch.Generator().manual_seed(0)
    for encoder in encoders.values():
        encoder.requires_grad_(False).weight.copy_(torch.randn(encoder.weight.shape, generator=g))
    rows = {name: torch.randn(1, 3, generator=g).double() for name in encoders}
    heads = {name: torch.cat([row, -row]) for name, row in rows.items()}
    scales = {"image": torch.full((2,), 0.7).double(), "sound": torch.full((2,), -1.3).double()}
    model = AdditiveModel(encoders, heads, scales, torch.tensor([0.2, -0.1]).double())
    inputs = {"image": torch.randn(9, 4, generator=g).double(), "sound": torch.randn(9, 2, generator=g).double()}
    logits = model(inputs)
    normal = torch.cat([2 * scales[n][0] * rows[n] @ encoders[n].weight for n in encoders], dim=1)
    radius = certified_radius(model, inputs, logits.argmax(1), spectral_lipschitz(model)).joint
    assert torch.allclose(radius, (logits[:, 0] - logits[:, 1]).abs() / normal.norm())


def test_negative_scales_do_not_enlarge_the_radius() -> None:
    """The published formula sums a itself: with opposite signs its denominator cancels and the radius is unsound."""
    model = additive(4, signs=True)
    inputs, labels = answered(model)
    tau = spectral_lipschitz(model).tau
    rival = model(inputs).scatter(1, labels[:, None], -math.inf).argmax(1)
    logits = model(inputs)
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, rival[:, None]))[:, 0]
    speed = {name: model.scales[name] * tau[name] for name in SIZES}
    published = margin / sum((s[labels] + s[rival]).square() for s in speed.values()).sqrt()
    ours = certified_radius(model, inputs, labels, Lipschitz(tau, sound=True)).joint
    assert bool((ours <= published + 1e-12).all())

    broken = 0
    for i in range(len(labels)):
        one = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        moved = l2_attack(model, one, labels[i : i + 1], tuple(SIZES), float(published[i]), steps=20, step=0.25)
        broken += int(model(moved).argmax(1)) != int(labels[i])
    assert broken > 0


def test_an_estimate_is_no_certificate() -> None:
    model = additive(5, hidden=6)
    inputs, labels = answered(model)
    seen = empirical_lipschitz(model, [inputs])
    with pytest.raises(InvalidInput, match="estimate"):
        certified_radius(model, inputs, labels, seen)
    proven = certified_radius(model, inputs, labels, spectral_lipschitz(model)).joint
    assert bool((estimated_radius(model, inputs, labels, seen).joint >= proven).all())


def test_a_radius_without_any_slope_is_infinite_and_says_so() -> None:
    model = additive(6)
    inputs, labels = answered(model)
    zero = Lipschitz({name: torch.zeros(K).double() for name in SIZES}, sound=True)
    radius = certified_radius(model, inputs, labels, zero)
    assert bool(radius.infinite.all())
    assert bool(radius.joint.isposinf().all())
    wrong = certified_radius(model, inputs, (labels + 1) % K, zero)
    assert bool(wrong.joint.isneginf().all())
    assert not bool(wrong.infinite.any())


def test_the_radius_can_be_trained_by_the_scales_alone() -> None:
    """Step 2 of CRMT: the gradient reaches the scales and nothing else needs one."""
    model = additive(7)
    inputs, labels = answered(model)
    scales = {name: scale.clone().requires_grad_() for name, scale in model.scales.items()}
    mean = estimated_radius(
        AdditiveModel(model.encoders, model.heads, scales, model.bias), inputs, labels, spectral_lipschitz(model)
    ).joint.mean()
    gradients = torch.autograd.grad(mean, list(scales.values()))
    raised = {n: s.detach() + 1e-3 * g / g.norm() for (n, s), g in zip(scales.items(), gradients, strict=True)}
    after = AdditiveModel(model.encoders, model.heads, raised, model.bias)
    assert float(estimated_radius(after, inputs, labels, spectral_lipschitz(model)).joint.mean()) > float(mean.detach())


def test_shares_of_the_margin_sum_to_one_and_are_the_plain_quotient_where_both_agree() -> None:
    model = additive(8)
    inputs, labels = answered(model)
    shares = margin_shares(model, inputs, labels)
    assert torch.allclose(shares["image"] + shares["sound"], torch.ones(40).double())

    logits = model(inputs)
    rival = logits.scatter(1, labels[:, None], -math.inf).argmax(1)
    part = {n: model.scales[n] * s for n, s in model.scores(inputs).items()}
    gap = {n: p[torch.arange(40), labels] - p[torch.arange(40), rival] for n, p in part.items()}
    agree = (gap["image"] > 0) & (gap["sound"] > 0)
    assert int(agree.sum()) > 5
    assert torch.allclose(shares["image"][agree], (gap["image"] / (gap["image"] + gap["sound"]))[agree])


def test_a_modality_that_is_not_read_has_no_share_and_no_vulnerability() -> None:
    model = additive(9)
    deaf = AdditiveModel(model.encoders, model.heads, {**model.scales, "sound": torch.zeros(K).double()}, model.bias)
    inputs, labels = answered(deaf)
    assert float(margin_shares(deaf, inputs, labels)["sound"].max()) == 0
    assert float(vulnerability(deaf, inputs, labels, spectral_lipschitz(deaf))["sound"].max()) == 0
    table = evaluate(deaf, [(inputs, labels)], ModalityPreference(eps=(0.5, 5.0)))
    assert table.preferred().name == "image"
    for scenario in ("missing", "fgm 0.5", "pgd 5"):
        assert table.cost(Condition(scenario, ("sound",))).value == 0
    assert table.extra_cost("pgd 5", "image", "sound").value > 0.5
    low = table.extra_cost("pgd 5", "image", "sound").low
    assert low is not None
    assert low > 0.3


# attacks and the loop


def norms(moved: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (moved[name] - inputs[name]).flatten(1).norm(dim=1) for name in inputs}


@pytest.mark.parametrize(("steps", "step"), [(1, 1.0), (4, 1 / 3), (20, 0.25)])
def test_attacks_stay_in_their_ball_and_box_and_touch_one_modality(steps: int, step: float) -> None:
    model = additive(10, hidden=8)
    inputs = {name: (tensor / 4 + 0.5).clamp(0, 1) for name, tensor in samples(20).items()}
    labels = model(inputs).argmax(1)
    kept = {name: tensor.clone() for name, tensor in inputs.items()}
    moved = l2_attack(model, inputs, labels, ["image"], 0.7, steps, step, {"image": (0.0, 1.0)})
    length = norms(moved, inputs)
    assert float(length["image"].max()) <= 0.7 + 1e-9
    assert float(length["image"].min()) > 0
    assert float(length["sound"].max()) == 0
    assert float(moved["image"].min()) >= 0
    assert float(moved["image"].max()) <= 1
    assert all(torch.equal(inputs[name], kept[name]) for name in inputs)

    joint = l2_attack(model, inputs, labels, list(SIZES), 0.7, steps, step)
    both = torch.stack(list(norms(joint, inputs).values())).norm(dim=0)
    assert float(both.max()) <= 0.7 + 1e-9
    assert float(nn.functional.cross_entropy(model(joint), labels)) > float(
        nn.functional.cross_entropy(model(inputs), labels)
    )


def test_the_fast_gradient_step_is_the_gradient_at_full_length() -> None:
    model = additive(11, hidden=8)
    inputs, labels = answered(model)
    leaf = inputs["image"].clone().requires_grad_()
    loss = nn.functional.cross_entropy(model({**inputs, "image": leaf}), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    moved = l2_attack(model, inputs, labels, ["image"], 0.3, steps=1, step=1.0)
    length = gradient.norm(dim=1, keepdim=True)
    flat = length[:, 0] == 0  # where all units are off or the label is certain, nothing points anywhere
    assert torch.equal(moved["image"][flat], inputs["image"][flat])
    assert int((~flat).sum()) > 30
    assert torch.allclose(moved["image"][~flat], (inputs["image"] + 0.3 * gradient / length)[~flat])


def test_rows_do_not_depend_on_the_batches_and_match_attacks_made_by_hand() -> None:
    model = additive(12, hidden=8)
    inputs, labels = answered(model)
    settings = ModalityPreference(eps=(0.3, 1.0))
    whole = evaluate(model, [(inputs, labels)], settings)
    parts = [({n: t[i : i + 7] for n, t in inputs.items()}, labels[i : i + 7]) for i in range(0, 40, 7)]
    assert (evaluate(model, parts, settings).correct == whole.correct).all()

    by_hand = model(l2_attack(model, inputs, labels, ["sound"], 1.0)).argmax(1) == labels
    place = whole.conditions.index(Condition("pgd 1", ("sound",)))
    assert whole.correct[place].tolist() == by_hand.tolist()
    missing = model({**inputs, "sound": torch.zeros_like(inputs["sound"])}).argmax(1) == labels
    assert whole.score(Condition("missing", ("sound",))).value == pytest.approx(float(missing.double().mean()))
    assert whole.score(CLEAN).value == 1
    assert len(whole.rows()) == 1 + 2 * (1 + 2 * 2)


def test_a_larger_radius_never_costs_a_linear_two_class_model_less() -> None:
    model = additive(13)
    two = AdditiveModel(
        model.encoders,
        {n: w[:2] for n, w in model.heads.items()},
        {n: a[:2] for n, a in model.scales.items()},
        model.bias[:2],
    )
    inputs, labels = answered(two)
    table = evaluate(two, [(inputs, labels)], ModalityPreference(eps=(0.1, 0.4, 1.6)))
    for name in SIZES:
        for kind in ("fgm", "pgd"):
            curve = [table.score(Condition(f"{kind} {eps:g}", (name,))).value for eps in (0.1, 0.4, 1.6)]
            assert curve == sorted(curve, reverse=True)


@pytest.mark.parametrize("given", [{"eps": ()}, {"eps": (0.0, 1.0)}, {"eps": (2.0, 1.0)}, {"steps": 0}, {"step": 0.0}])
def test_unusable_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        ModalityPreference(**given)


def test_unusable_data_are_refused() -> None:
    model = additive(14)
    inputs, labels = answered(model)

    def refused(given: dict[str, Tensor], labels: Tensor, message: str, **settings: object) -> None:
        with pytest.raises(InvalidInput, match=message):
            evaluate(model, [(given, labels)], ModalityPreference(**settings))

    refused({"image": inputs["image"]}, labels, "two modalities")
    refused({**inputs, "sound": inputs["sound"][:5]}, labels, "one batch size")
    refused(inputs, labels + K, r"0\.\.4")
    refused(inputs, labels.double(), "int64")
    refused(inputs, labels[:3], "logits")
    refused(inputs, labels, "its box", boxes={"image": (0.0, 1.0)})
    refused(inputs, labels, "boxes must name", boxes={"smell": (0.0, 1.0)})
    with pytest.raises(InvalidInput, match="at least one batch"):
        evaluate(model, [])
    with pytest.raises(InvalidInput, match="no gradients"):
        evaluate(lambda given: model(given).detach(), [(inputs, labels)])
    with pytest.raises(InvalidInput, match="at least one batch"):
        empirical_lipschitz(model, [])
    with pytest.raises(InvalidInput, match="same two or more"):
        AdditiveModel({"image": model.encoders["image"]}, model.heads, model.scales, model.bias)
    with pytest.raises(InvalidInput, match="spectral"):
        spectral_lipschitz(AdditiveModel({n: nn.GELU() for n in SIZES}, model.heads, model.scales, model.bias))
