from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from snellen.errors import AccessDenied, BudgetExhausted, InvalidInput
from snellen.models import Access, Model, ModelSpec, QueryLedger, TorchModel
from snellen.models.torch_model import frozen_copy


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_forward_and_backward_images_are_booked(tiny_model: Model) -> None:
    x = images().requires_grad_()
    torch.autograd.grad(tiny_model(x).sum(), x)
    tiny_model.labels(images(3))
    tiny_model.features(images(2))
    assert tiny_model.ledger.totals == (type(tiny_model.ledger.totals))(forward=9, backward=4)


def test_a_pass_beyond_the_budget_is_refused_and_not_booked(tiny_model: Model) -> None:
    tiny_model.ledger = QueryLedger(budget=6)
    tiny_model.scores(images(4))
    with pytest.raises(BudgetExhausted, match="2 are left and the next pass needs 4"):
        tiny_model.scores(images(4))
    assert tiny_model.ledger.totals.forward == 4
    x = images(2).requires_grad_()
    with pytest.raises(BudgetExhausted):
        torch.autograd.grad(tiny_model(x).sum(), x)
    assert tiny_model.ledger.totals.backward == 0


@pytest.mark.parametrize("access", list(Access)[:-1])
def test_a_restricted_model_denies_what_lies_above_its_access(tiny_model: Model, access: Access) -> None:
    box = tiny_model.restrict(access)
    asked = {
        Access.SCORES: lambda: box(images()),
        Access.FEATURES: lambda: box.features(images()),
        Access.WEIGHTS: lambda: box.module,
    }
    box.labels(images())
    for level, ask in asked.items():
        if level > access:
            with pytest.raises(AccessDenied):
                ask()
        else:
            ask()
    with pytest.raises(AccessDenied, match="cannot be raised"):
        box.restrict(Access.WEIGHTS)


def test_scores_access_gives_no_gradient(tiny_model: Model) -> None:
    x = images().requires_grad_()
    assert not tiny_model.restrict(Access.SCORES)(x).requires_grad
    assert tiny_model.restrict(Access.GRADIENTS)(x).requires_grad


def test_a_view_shares_the_ledger(tiny_model: Model) -> None:
    tiny_model.restrict(Access.LABELS).labels(images(5))
    assert tiny_model.ledger.totals.forward == 5


def test_the_users_module_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)).train()
    network(images())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = TorchModel(network, ModelSpec("m", ("a", "b"), (16, 16)))
    x = images().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)
    assert network.training
    assert network[1].inplace
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_frozen_copy_computes_the_same() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    network(images())
    assert torch.equal(frozen_copy(network)(images()), network(images()))


def test_an_activation_before_an_in_place_relu_is_the_activation_itself(tiny_model: Model) -> None:
    taken = tiny_model.activations(images(), ["0"]).layers["0"]
    assert (taken < 0).any()


def test_gradients_reach_a_named_layer(tiny_model: Model) -> None:
    logits, layers = tiny_model.activations(images().requires_grad_(), ["0"])
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), layers["0"])
    assert gradient.shape == layers["0"].shape
    assert gradient.abs().sum() > 0


def test_features_are_what_the_head_reads(tiny_model: Model) -> None:
    head = tiny_model.module.get_submodule("4")
    assert torch.allclose(head(tiny_model.features(images())), tiny_model.scores(images()), atol=1e-6)


def test_an_unknown_layer_is_named(tiny_model: Model) -> None:
    with pytest.raises(InvalidInput, match="no layer 'nowhere'"):
        tiny_model.activations(images(), ["nowhere"])


def test_normalisation_and_resizing_belong_to_the_model() -> None:
    seen: list[torch.Tensor] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.flatten(1)[:, :2]

    spec = ModelSpec("m", ("a", "b"), (8, 8), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    TorchModel(look, spec).scores(torch.ones(1, 3, 32, 32))
    assert seen[0].shape == (1, 3, 8, 8)
    assert torch.allclose(seen[0], torch.full((1, 3, 8, 8), 2.0))


def test_a_wrong_number_of_outputs_shows_both_numbers() -> None:
    model = TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 7)), ModelSpec("m", ("a", "b"), (4, 4)))
    with pytest.raises(InvalidInput, match=r"\[1, 7\].*\[1, 2\]"):
        model.scores(torch.rand(1, 3, 4, 4))


def test_not_finite_scores_have_no_label() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0], [float("-inf"), 0.0]])[: len(x)]

    model = TorchModel(broken, ModelSpec("m", ("a", "b"), (4, 4)))
    assert model.labels(torch.rand(4, 3, 4, 4)).tolist() == [0, -1, -1, 1]


@pytest.mark.parametrize(
    "bad", [torch.rand(3, 16, 16), torch.rand(2, 1, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8)]
)
def test_wrong_images_are_refused(tiny_model: Model, bad: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="images must be"):
        tiny_model.scores(bad)


def test_the_fingerprint_follows_the_weights(tiny_model: Model) -> None:
    network = tiny_model.module
    spec = ModelSpec("m", ("cat", "dog", "owl"), (16, 16))
    first = TorchModel(network, spec).spec.fingerprint
    assert first == TorchModel(network, spec).spec.fingerprint
    other = frozen_copy(network)
    with torch.no_grad():
        other.get_parameter("0.weight").data = other.get_parameter("0.weight").data + 1e-3
    assert first != TorchModel(other, spec).spec.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a",)}, "at least 2"),
        ({"class_names": ("a", "a")}, "come twice"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"mean": (0.5, 0.5)}, "1 or 3 values"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
    ],
)
def test_an_impossible_spec_is_refused(change: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        ModelSpec(**{"name": "m", "class_names": ("a", "b"), "input_size": (4, 4), **change})


@pytest.fixture(scope="module")
def larger() -> tuple[torch.nn.Module, ModelSpec]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(256, 5),
        )  # fmt: skip
    return network, ModelSpec("larger", tuple("abcde"), (16, 16))


def test_bf16_is_within_two_percent_of_float32_and_differentiable(larger: tuple[torch.nn.Module, ModelSpec]) -> None:
    plain, short = TorchModel(*larger), TorchModel(*larger, dtype=torch.bfloat16)
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exact = plain(x)
    assert (short(x) - exact).abs().max() < 0.02 * exact.abs().max()
    assert short(x).dtype == torch.float32
    wanted, got = (torch.autograd.grad(model(x).sum(), x)[0].flatten() for model in (plain, short))
    assert torch.cosine_similarity(wanted, got, dim=0) > 0.99
    assert short.spec.fingerprint != plain.spec.fingerprint  # rows of one must not be taken for rows of the other


def test_a_compiled_network_answers_as_the_eager_one(larger: tuple[torch.nn.Module, ModelSpec]) -> None:
    plain, fast = TorchModel(*larger), TorchModel(*larger, compiled=True)
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fast.scores(x), plain.scores(x), atol=1e-5)
    assert torch.equal(fast.features(x), plain.features(x))
    assert fast.ledger.totals.forward == 16
    assert fast.spec.fingerprint != plain.spec.fingerprint


def test_a_copy_for_another_process_answers_the_same_and_counts_for_itself(tiny_model: Model) -> None:
    x = torch.rand(4, 3, 16, 16)
    copy = pickle.loads(pickle.dumps(tiny_model.restrict(Access.SCORES)))
    assert torch.equal(copy.scores(x), tiny_model.scores(x))
    assert copy.ledger.totals.forward == 4
    with pytest.raises(AccessDenied):
        copy.features(x)
