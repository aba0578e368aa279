import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snellen.attack.pgd import PGD, pgd
from snellen.errors import InvalidInput
from snellen.models import Access
from snellen.probe import Batch
from snellen.randomness import SampleRandom


def generators(count, seed=0):
    return SampleRandom(seed, "test").generators([str(i) for i in range(count)])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.8)])
@pytest.mark.parametrize("stop_early", [True, False])
def test_images_stay_in_ball_and_box_and_the_verdict_is_true(digits, norm, eps, stop_early):
    result = pgd(
        digits.network, digits.images, digits.labels, eps, norm, steps=8, generators=generators(60),
        stop_early=stop_early,
    )  # fmt: skip
    change = (result.images - digits.images).flatten(1)
    distance = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert (distance <= eps + 1e-6).all()
    assert torch.allclose(distance, result.distance)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    answer = digits.network(result.images).argmax(1)
    assert torch.equal(answer, result.predicted)
    assert torch.equal(answer != digits.labels, result.success)
    assert 0 < result.success.float().mean() < 1


def test_peer_torchattacks_linf(digits):
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.PGD(digits.network, eps=0.1, alpha=0.02, steps=10, random_start=False)
    ours = pgd(digits.network, digits.images, digits.labels, 0.1, steps=10, step_size=0.02, stop_early=False)
    assert torch.allclose(ours.images, peer(digits.images, digits.labels), atol=1e-5)


def test_peer_torchattacks_l2(digits):
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.PGDL2(digits.network, eps=0.8, alpha=0.2, steps=10, random_start=False)
    ours = pgd(digits.network, digits.images, digits.labels, 0.8, "l2", steps=10, step_size=0.2, stop_early=False)
    assert torch.allclose(ours.images, peer(digits.images, digits.labels), atol=1e-5)


def test_peer_torchattacks_fgsm_is_one_full_step(digits):
    torchattacks = pytest.importorskip("torchattacks")
    ours = pgd(digits.network, digits.images, digits.labels, 0.1, steps=1, step_size=0.1, stop_early=False)
    peer = torchattacks.FGSM(digits.network, eps=0.1)
    assert torch.allclose(ours.images, peer(digits.images, digits.labels), atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_peer_foolbox(digits, norm):
    foolbox = pytest.importorskip("foolbox")
    peer_class = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    peer = peer_class(abs_stepsize=0.03, steps=10, random_start=False)
    model = foolbox.PyTorchModel(digits.network, bounds=(0, 1))
    _, clipped, _ = peer(model, digits.images, digits.labels, epsilons=0.1)
    ours = pgd(digits.network, digits.images, digits.labels, 0.1, norm, steps=10, step_size=0.03, stop_early=False)
    assert torch.allclose(ours.images, clipped, atol=1e-5)


def test_linear_model_is_driven_to_its_optimum(linear):
    images = 0.5 + 0.1 * torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = linear(images).argmax(1)
    result = pgd(linear, images, labels, 0.05, steps=10, stop_early=False)
    margin = linear(images).gather(1, labels[:, None]) - 2 * 0.05 * linear.w.abs().sum() / 2
    assert torch.allclose(linear(result.images).gather(1, labels[:, None]), margin, atol=1e-4)


def test_early_stop_loses_nothing_and_saves_passes(digits):
    args = (digits.network, digits.images, digits.labels, 0.1)
    full, early = pgd(*args, steps=20, stop_early=False), pgd(*args, steps=20)
    assert (early.success | ~full.success).all()
    assert early.forwards < full.forwards
    assert (full.forwards, full.backwards) == (60 * 21, 60 * 20)


def test_an_image_is_attacked_the_same_alone_and_in_a_batch(digits):
    together = pgd(digits.network, digits.images[:8], digits.labels[:8], 0.1, generators=generators(8))
    for i in range(8):
        alone = pgd(
            digits.network, digits.images[i : i + 1], digits.labels[i : i + 1], 0.1, generators=generators(8)[i : i + 1]
        )
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1e-5)


def test_every_pass_is_reported(digits):
    before = digits.model.ledger.totals
    result = pgd(digits.model, digits.images, digits.labels, 0.1, steps=6)
    spent = digits.model.ledger.totals - before
    assert (spent.forward, spent.backward) == (result.forwards, result.backwards)


def test_parameters_gradients_and_global_randomness_are_left_alone(digits):
    state = torch.random.get_rng_state()
    images = digits.images.clone()
    pgd(digits.network, images, digits.labels, 0.1, generators=generators(60))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(images, digits.images)
    assert all(p.requires_grad for p in digits.network.parameters())
    assert not images.requires_grad


def test_attack_works_inside_no_grad(digits):
    with torch.no_grad():
        assert pgd(digits.network, digits.images, digits.labels, 0.1).success.any()


def test_channels_last_images_give_channels_last_results(digits):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    images = torch.rand(4, 3, 8, 8).to(memory_format=torch.channels_last)
    result = pgd(network, images, network(images).argmax(1), 0.01)
    assert result.images.is_contiguous(memory_format=torch.channels_last)


def test_saturated_model_is_flagged_as_blind(digits):
    def scaled(images):
        return 1000 * digits.network(images)

    blind = pgd(scaled, digits.images, digits.labels, 0.1)
    sighted = pgd(scaled, digits.images, digits.labels, 0.1, loss="dlr")
    assert blind.zero_gradient.float().mean() > 0.9
    # Fooled already, with the label in third place, the ratio is 1 all around: that is no blindness.
    assert not (sighted.zero_gradient & ~sighted.success).any()
    assert sighted.success.sum() > blind.success.sum() + 6


def test_any_loss_of_logits_and_labels_can_be_climbed(digits):
    def margin(logits, labels):
        return -F.nll_loss(logits, labels, reduction="none").neg()

    assert pgd(digits.network, digits.images, digits.labels, 0.1, loss=margin).success.any()


@pytest.mark.parametrize(
    "broken",
    [
        {"eps": 0.0}, {"steps": 0}, {"step_size": 0.0}, {"loss": "hinge"}, {"norm": "l1"},
        {"labels": torch.full((60,), 10)}, {"labels": torch.full((60,), -1)},
        {"images": torch.full((60, 1, 8, 8), 2.0)},
    ],
)  # fmt: skip
def test_bad_input_is_refused(digits, broken):
    arguments = {"images": digits.images, "labels": digits.labels, "eps": 0.1} | broken
    with pytest.raises(InvalidInput):
        pgd(digits.network, **arguments)


@pytest.mark.parametrize("cut", ["no graph", "detached", "black box"])
def test_models_without_gradients_are_refused(digits, cut):
    model = {
        "no graph": lambda images: digits.network(images).detach(),
        "detached": lambda images: digits.network(images.detach()),
        "black box": digits.model.restrict(Access.SCORES),
    }[cut]
    with pytest.raises(InvalidInput, match="gradients"):
        pgd(model, digits.images, digits.labels, 0.1)


def batch_of(digits, start, stop):
    ids = [f"s{i}" for i in range(start, stop)]
    return Batch(ids, digits.images[start:stop], digits.labels[start:stop])


def test_probe_rows_do_not_depend_on_the_batches(digits):
    probe, random = PGD(eps=(0.05, 0.1), steps=5), SampleRandom(0, "attack/pgd")
    whole = probe.run(digits.model, batch_of(digits, 0, 20), random)
    split = [probe.run(digits.model, batch_of(digits, a, b), random) for a, b in ((0, 3), (3, 20))]
    rows = {(row["id"], row["eps"]): row for row in whole.to_pylist()}
    for row in split[0].to_pylist() + split[1].to_pylist():
        other = rows.pop((row["id"], row["eps"]))
        assert row.pop("distance") == pytest.approx(other.pop("distance"), abs=1e-5)
        assert row == other
    assert not rows


def test_probe_costs_no_more_than_it_says(digits):
    probe = PGD(eps=(0.02, 0.1), steps=5)
    before = digits.model.ledger.totals
    probe.run(digits.model, batch_of(digits, 0, 60), SampleRandom(0, "attack/pgd"))
    spent, most = digits.model.ledger.totals - before, probe.cost(60)
    assert spent.forward <= most.forward
    assert spent.backward <= most.backward


@pytest.mark.parametrize("broken", [{"eps": ()}, {"eps": (0.1, 0.1)}, {"eps": (-0.1,)}, {"steps": 0}, {"norm": "l0"}])
def test_bad_settings_are_refused(broken):
    with pytest.raises(InvalidInput):
        PGD(**broken)
