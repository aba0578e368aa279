import pytest
import torch
import torch.nn.functional as F

from snellen.attack.apgd import APGD, apgd, apgd_targeted
from snellen.attack.pgd import pgd
from snellen.errors import InvalidInput
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch
from snellen.randomness import SampleRandom


def generators(count, seed=0):
    return SampleRandom(seed, "test").generators([str(i) for i in range(count)])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
@pytest.mark.parametrize("stop_early", [True, False])
def test_images_stay_in_ball_and_box_and_the_verdict_is_true(digits, norm, eps, loss, stop_early):
    args = (digits.network, digits.images, digits.labels, eps, norm)
    if loss == "targeted":
        result = apgd_targeted(*args, steps=10, classes=3, generators=generators(60))
    else:
        result = apgd(*args, steps=20, loss=loss, generators=generators(60), stop_early=stop_early)
    change = (result.images - digits.images).flatten(1)
    distance = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (distance <= eps + 1e-6).all()
    assert torch.allclose(distance, result.distance, atol=1e-6)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    answer = digits.network(result.images).argmax(1)
    assert torch.equal(answer, result.predicted)
    assert torch.equal(answer != digits.labels, result.success)
    assert 0 < result.success.float().mean() < 1


def test_linear_model_is_driven_to_its_optimum(linear):
    images = 0.5 + 0.1 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = linear(images).argmax(1)
    for norm, dual in (("linf", linear.w.abs().sum()), ("l2", linear.w.norm())):
        result = apgd(linear, images, labels, 0.02, norm, steps=40, stop_early=False)
        best = linear(images).gather(1, labels[:, None]) - 0.02 * dual
        assert torch.allclose(linear(result.images).gather(1, labels[:, None]), best, atol=1e-5)


def test_survivors_are_returned_at_the_highest_loss_seen(digits):
    seen = []

    def recording(images):
        logits = digits.network(images)
        seen.append(F.cross_entropy(logits, digits.labels, reduction="none").detach())
        return logits

    result = apgd(recording, digits.images, digits.labels, 0.05, steps=30, stop_early=False)
    final = F.cross_entropy(digits.network(result.images), digits.labels, reduction="none").detach()
    highest = torch.stack(seen).amax(0)
    survivors = ~result.success
    assert survivors.any()
    assert torch.allclose(final[survivors], highest[survivors], atol=1e-5)


def test_adaptive_steps_reach_a_higher_loss_than_fixed_ones(digits):
    def loss_of(result):
        return F.cross_entropy(digits.network(result.images), digits.labels, reduction="none").detach()[stay]

    args = (digits.network, digits.images, digits.labels, 0.1)
    ours, fixed = apgd(*args, steps=50, stop_early=False), pgd(*args, steps=50, step_size=0.025, stop_early=False)
    stay = ~ours.success & ~fixed.success
    assert loss_of(ours).mean() >= loss_of(fixed).mean() - 1e-4


def test_early_stop_finds_the_same_images_with_fewer_passes(digits):
    args = (digits.network, digits.images, digits.labels, 0.1)
    full, early = apgd(*args, steps=30, stop_early=False), apgd(*args, steps=30)
    assert torch.equal(full.success, early.success)
    assert (full.forwards, full.backwards) == (60 * 31, 60 * 30)
    assert early.forwards < full.forwards


def test_an_image_is_attacked_the_same_alone_and_in_a_batch(digits):
    together = apgd(digits.network, digits.images[:8], digits.labels[:8], 0.1, steps=20, generators=generators(8))
    for i in range(8):
        alone = apgd(
            digits.network, digits.images[i : i + 1], digits.labels[i : i + 1], 0.1,
            steps=20, generators=generators(8)[i : i + 1],
        )  # fmt: skip
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1e-4)


def test_every_pass_is_reported(digits):
    for attack in (apgd, apgd_targeted):
        before = digits.model.ledger.totals
        result = attack(digits.model, digits.images, digits.labels, 0.1, steps=6)
        spent = digits.model.ledger.totals - before
        assert (spent.forward, spent.backward) == (result.forwards, result.backwards)


def test_ratio_loss_sees_through_saturated_logits(digits):
    def scaled(images):
        return 1000 * digits.network(images)

    args = (digits.images, digits.labels, 0.1)
    plain, blind = apgd(digits.network, *args, loss="dlr"), apgd(scaled, *args)
    sighted = apgd(scaled, *args, loss="dlr")
    assert (sighted.success != plain.success).float().mean() <= 0.03
    assert sighted.success.sum() > blind.success.sum() + 6
    assert (blind.zero_gradient & ~blind.success).any()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.8)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_peer_torchattacks_is_not_stronger(digits, norm, eps, loss):
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.APGD(digits.network, norm=norm, eps=eps, steps=50, n_restarts=1, seed=0, loss=loss)
    fooled = digits.network(peer(digits.images, digits.labels)).argmax(1) != digits.labels
    ours = apgd(
        digits.network, digits.images, digits.labels, eps, norm.lower(), steps=50, loss=loss, generators=generators(60)
    )
    # Two starts differ: one image in sixty to either side is chance.
    assert abs(int(ours.success.sum()) - int(fooled.sum())) <= 1


@pytest.mark.parametrize("broken", [{"steps": 0}, {"eps": -1.0}, {"loss": "hinge"}, {"norm": "l1"}])
def test_bad_input_is_refused(digits, broken):
    arguments = {"eps": 0.1} | broken
    with pytest.raises(InvalidInput):
        apgd(digits.network, digits.images, digits.labels, **arguments)


def test_two_classes_refuse_the_ratio_loss_but_not_the_probe(linear):
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = linear(images).argmax(1)
    with pytest.raises(InvalidInput, match="3 classes"):
        apgd(linear, images, labels, 0.1, loss="dlr")
    spec = ModelSpec("linear", ("no", "yes"), (4, 4))
    table = APGD(steps=5).run(
        TorchModel(linear, spec), Batch([str(i) for i in range(6)], images, labels), SampleRandom(0, "attack/apgd")
    )
    assert table.num_rows == 24


@pytest.mark.parametrize("loss", ["ce", "dlr", "both", "targeted"])
def test_probe_is_cheaper_than_it_says_and_stages_only_add(digits, loss):
    ids = [str(i) for i in range(60)]
    probe = APGD(eps=(0.1,), steps=10, loss=loss)
    before = digits.model.ledger.totals
    batch, random = Batch(ids, digits.images, digits.labels), SampleRandom(0, "attack/apgd")
    table = probe.run(digits.model, batch, random)
    spent, most = digits.model.ledger.totals - before, probe.cost(60)
    assert spent.forward <= most.forward
    assert spent.backward <= most.backward
    if loss in ("both", "targeted"):
        alone = APGD(eps=(0.1,), steps=10, loss="ce").run(digits.model, batch, random)
        pairs = zip(table["robust"].to_pylist(), alone["robust"].to_pylist(), strict=True)
        assert all(first <= second for first, second in pairs)


@pytest.mark.parametrize("broken", [{"eps": ()}, {"steps": 0}, {"norm": "l0"}, {"loss": "margin"}])
def test_bad_settings_are_refused(broken):
    with pytest.raises(InvalidInput):
        APGD(**broken)
