"""An attacker's patch stays inside its cell; attention is read as it is, flattened, and put back."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from snellen.errors import AccessDenied, InvalidInput
from snellen.models import Access, ModelSpec, TorchModel
from snellen.probe import Batch, Context
from snellen.randomness import SampleRandom
from snellen.shift._patches import random_patches
from snellen.shift.adversarial_patch import (
    AdversarialPatch,
    Judged,
    adversarial_patch,
    attention_maps,
    attention_ratio,
    best_temperature,
    column_attention,
    feature_attention,
    patch_attention,
    rollout,
    softened,
    temperature_sweep,
)

RANDOM = SampleRandom(0, "test")


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=4, num_classes=5)
        for layer in network.blocks:
            nn.init.normal_(layer.attn.qkv.weight, std=0.3)  # so that attention is far from uniform
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def cells(count: int, side: int = 4) -> Tensor:
    return random_patches([torch.Generator().manual_seed(i) for i in range(count)], 32, 32, side, (1,))[0]


def streams(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def context() -> Context:
    return Context(ModelSpec("m", tuple("abcde"), (32, 32)), pa.table({"id": [], "label": []}))


def test_outside_the_patch_every_bit_stays_and_inside_pixels_stay_in_range(
    vit: VisionTransformer, images: Tensor
) -> None:
    pixels, labels = cells(12), vit(images).argmax(dim=1)
    inside = pixels[:, None].expand_as(images)
    attacks = {
        eps: adversarial_patch(vit, images, labels, pixels, streams(12), steps=8, restarts=2, eps=eps)
        for eps in (None, 8 / 255)
    }
    for attack in attacks.values():
        assert torch.equal(attack.images[~inside], images[~inside])
        assert float(attack.images.min()) >= 0
        assert float(attack.images.max()) <= 1
        assert torch.equal(vit(attack.images).argmax(dim=1), attack.predicted)
        assert torch.equal(attack.predicted != labels, attack.fooled)
    hidden = attacks[8 / 255].images
    assert float((hidden - images).abs().max()) <= 8 / 255 + 1e-6
    assert int(attacks[8 / 255].fooled.sum()) <= int(attacks[None].fooled.sum())


def test_more_steps_and_restarts_never_fool_fewer_and_beat_random_patches(
    vit: VisionTransformer, images: Tensor
) -> None:
    labels, pixels = vit(images).argmax(dim=1), cells(12, 8)

    def fooled(steps: int, restarts: int) -> Tensor:
        return adversarial_patch(vit, images, labels, pixels, streams(12), steps=steps, restarts=restarts).fooled

    random, few, many, again = fooled(0, 1), fooled(3, 1), fooled(25, 1), fooled(25, 3)
    assert not (random & ~few).any()
    assert not (few & ~many).any()
    assert not (many & ~again).any()
    assert int(many.sum()) > int(random.sum())


def test_an_image_does_not_depend_on_its_batch(vit: VisionTransformer, images: Tensor) -> None:
    labels, pixels = vit(images).argmax(dim=1), cells(12)
    whole = adversarial_patch(vit, images, labels, pixels, streams(12), steps=5, restarts=2)
    part = adversarial_patch(vit, images[4:7], labels[4:7], pixels[4:7], streams(12)[4:7], steps=5, restarts=2)
    assert torch.equal(whole.fooled[4:7], part.fooled)
    assert torch.allclose(whole.images[4:7], part.images, atol=1e-5)


class Watched(nn.Module):
    """A linear reader of the whole image that notes how many images it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        bright = (images.mean(dim=(1, 2, 3)) - 0.5) * 100
        return torch.stack([-bright, bright], dim=1)


def test_fooled_images_are_left_alone_and_a_linear_model_is_climbed_straight_up() -> None:
    # Two images: the first a hair below the boundary, the second out of reach of one cell.
    images = torch.stack([torch.full((3, 16, 16), 0.498), torch.full((3, 16, 16), 0.1)])
    pixels = torch.zeros(2, 16, 16, dtype=torch.bool)
    pixels[:, 4:8, 4:8] = True
    reader = Watched()
    attack = adversarial_patch(
        reader, images, torch.zeros(2, dtype=torch.long), pixels, streams(2), steps=200, restarts=2
    )
    assert attack.fooled.tolist() == [True, False]
    assert int(attack.gradients[0]) < 40
    assert int(attack.gradients[1]) == 400
    assert reader.asked[0] == 2
    assert reader.asked[-1] == 1
    assert float(attack.images[1][:, 4:8, 4:8].min()) == 1.0  # the best a patch can do for the other class


def test_a_model_without_gradients_and_bad_arguments_are_refused(vit: VisionTransformer, images: Tensor) -> None:
    labels, pixels = vit(images).argmax(dim=1), cells(12)
    with pytest.raises(InvalidInput, match="differentiable"):
        adversarial_patch(lambda x: vit(x).detach(), images, labels, pixels, streams(12))
    for arguments in (
        (images * 2, labels, pixels, streams(12)),
        (images, labels[:3], pixels, streams(12)),
        (images, labels, pixels[:, :8], streams(12)),
        (images, labels, pixels.float(), streams(12)),
        (images, labels, pixels, streams(3)),
    ):
        with pytest.raises(InvalidInput):
            adversarial_patch(vit, *arguments)
    with pytest.raises(InvalidInput, match="steps"):
        adversarial_patch(vit, images, labels, pixels, streams(12), restarts=0)
    with pytest.raises(InvalidInput, match="eps"):
        adversarial_patch(vit, images, labels, pixels, streams(12), eps=0.0)
    for bad in ({"steps": 0}, {"eps": 2.0}, {"step_size": 0.0}, {"patch": 1}, {"names": ()}, {"names": ("sleet",)}):
        with pytest.raises(InvalidInput):
            AdversarialPatch(**bad)


def test_temperature_one_is_the_model_and_the_block_leaves_no_trace(vit: VisionTransformer, images: Tensor) -> None:
    before = vit(images)
    settings = [(layer.attn.scale, layer.attn.fused_attn) for layer in vit.blocks]
    with softened(vit, 1.0):
        assert torch.allclose(vit(images), before, atol=1e-6)
    with softened(vit, 3.0):
        assert not torch.allclose(vit(images), before, atol=1e-3)
    with pytest.raises(RuntimeError), softened(vit, 3.0):
        raise RuntimeError
    assert [(layer.attn.scale, layer.attn.fused_attn) for layer in vit.blocks] == settings
    assert torch.equal(vit(images), before)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInput, match="temperature"), softened(vit, temperature):
            pass


def test_heat_flattens_attention_to_uniform(vit: VisionTransformer, images: Tensor) -> None:
    def entropy(attention: Tensor) -> Tensor:
        return -(attention.double() * attention.double().clamp(min=1e-300).log()).sum(dim=-1)

    first = [entropy(attention_maps(vit, images, t)[0]) for t in (0.5, 1.0, 1.5, 2.0, 10.0)]
    for colder, warmer in pairwise(first):
        assert (warmer >= colder - 1e-6).all()
    for attention in attention_maps(vit, images, 1e9):
        assert torch.allclose(attention, torch.full_like(attention, 1 / 65), atol=1e-6)


def test_attention_is_read_of_a_model_as_of_its_module(vit: VisionTransformer, images: Tensor) -> None:
    spec = ModelSpec("vit", tuple("abcde"), (32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = TorchModel(vit, spec)
    through = attention_maps(model.module, images, run=model.scores)
    directly = attention_maps(vit, (images - 0.5) / 0.5)
    assert len(through) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(through, directly, strict=True))
    with softened(model.module, 2.0):
        warm = model.scores(images)
    with softened(vit, 2.0):
        assert torch.allclose(warm, vit((images - 0.5) / 0.5), atol=1e-4)


def test_rollout_rows_sum_to_one_and_equal_a_loop_in_float64(vit: VisionTransformer, images: Tensor) -> None:
    maps = [attention.double() for attention in attention_maps(vit, images[:3])]
    rolled = rollout(maps)
    assert (rolled >= 0).all()
    assert torch.allclose(rolled.sum(dim=-1), torch.ones(3, 65, dtype=torch.float64), atol=1e-6)
    for i in range(3):
        product = np.eye(65)
        for attention in maps:
            mean = sum(attention[i, head].numpy() for head in range(4)) / 4
            layer = 0.5 * mean + 0.5 * np.eye(65)
            product = (layer / layer.sum(axis=1, keepdims=True)) @ product
        assert np.allclose(rolled[i].numpy(), product, atol=1e-12)
    seen = patch_attention(maps, 32, 32)
    assert torch.equal(seen.flatten(1), rolled[:, 0, 1:])
    with pytest.raises(InvalidInput, match="prefix"):
        patch_attention(maps, 32, 32, prefix=2)


def test_without_a_class_token_the_rows_are_averaged() -> None:
    pooled = VisionTransformer(
        img_size=(16, 32), patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, class_token=False,
        global_pool="avg",
    ).eval()  # fmt: skip
    maps = attention_maps(pooled, torch.rand(2, 3, 16, 32))
    seen = patch_attention(maps, 16, 32, prefix=0)
    assert seen.shape == (2, 4, 8)
    assert torch.allclose(seen.flatten(1), rollout(maps).mean(dim=1))


def test_the_ratio_is_one_for_even_attention_and_counts_what_a_patch_covers() -> None:
    pixels = cells(5)
    assert torch.allclose(attention_ratio(torch.full((5, 8, 8), 0.3), pixels), torch.ones(5))
    attention = torch.ones(5, 8, 8) + 2 * pixels[:, ::4, ::4]
    assert torch.allclose(attention_ratio(attention, pixels), torch.full((5,), 3.0))
    (between,) = random_patches(streams(5), 32, 32, 4, (1,), aligned=False)
    touched = between.view(5, 8, 4, 8, 4).any(dim=4).any(dim=2)
    assert (touched.flatten(1).sum(dim=1) == 4).all()
    assert torch.allclose(attention_ratio(1 + touched.float(), between), torch.full((5,), 2.0))
    assert feature_attention(torch.tensor([[[[-1.0]], [[3.0]]]])).tolist() == [[[2.0]]]


def test_column_attention_is_the_largest_look_at_a_token(vit: VisionTransformer, images: Tensor) -> None:
    maps = attention_maps(vit, images[:2])
    token = torch.tensor([3, 40])
    looked = column_attention(maps, token)
    assert looked.shape == (2, 3, 4)
    for i in range(2):
        assert looked[i, 1, 2] == maps[1][i, 2, :, token[i]].max()


def test_only_plain_global_attention_is_accepted() -> None:
    with pytest.raises(InvalidInput, match="no self-attention"):
        attention_maps(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.rand(1, 3, 32, 32))
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=2)
    with pytest.raises(InvalidInput, match="position bias"), softened(swin, 2.0):
        pass


def test_the_sweep_judges_the_softened_module_and_keeps_clean_accuracy(vit: VisionTransformer, images: Tensor) -> None:
    seen = []

    def judge(module: nn.Module) -> Judged:
        seen.append(float(module(images).abs().sum()))
        return Judged(1.0, 0.5)

    temperature_sweep(vit, (1.0, 1.5, 2.0), judge)
    assert len(set(seen)) == 3
    judged = {1.0: Judged(0.9, 0.5), 1.5: Judged(0.895, 0.3), 2.0: Judged(0.8, 0.0)}
    assert best_temperature(judged) == 1.5
    assert best_temperature(judged, allowed_drop=0.2) == 2.0
    assert best_temperature({1.0: Judged(0.9, 0.5), 2.0: Judged(0.9, 0.5)}) == 1.0
    with pytest.raises(InvalidInput, match="temperature 1"):
        best_temperature({2.0: Judged(0.9, 0.5)})


def test_the_probe_attacks_right_images_only_and_spends_what_it_says(vit: VisionTransformer, images: Tensor) -> None:
    model = TorchModel(vit, ModelSpec("vit", tuple("abcde"), (32, 32)))
    labels = model.labels(images)
    labels[:4] = (labels[:4] + 1) % 5
    batch = Batch([f"s{i}" for i in range(12)], images, labels)
    probe = AdversarialPatch(steps=6, restarts=2, patch=8, names=("impulse_noise", "fog"))
    table = probe.run(model, batch, RANDOM)
    fooled, right = (table[name].to_numpy(zero_copy_only=False) for name in ("fooled", "clean_correct"))
    assert right.sum() == 8
    assert not fooled[:4].any()
    assert (table["gradients"].to_numpy()[:4] == 0).all()
    spent, least = model.ledger.totals, probe.cost(12)
    assert spent.forward <= least.forward + 12
    assert spent.backward <= least.backward

    main, beyond = probe.findings(table, context())
    assert main.value == pytest.approx(fooled.sum() / 8)
    assert main.effect == pytest.approx(fooled.sum() / 12)
    assert main.n == 8
    assert not main.enough_data
    assert beyond.value == pytest.approx(fooled[4:].mean() - table["natural"].to_numpy()[4:].mean())
    (bars,) = probe.exhibits(table, context())
    assert bars.title == "Fooling rate of one damaged place"
    assert probe.findings(table.slice(0, 0), context()) == []
    assert probe.exhibits(table.slice(0, 0), context()) == []
    assert probe.findings(table.slice(0, 4), context()) == []  # nothing was right

    part = Batch(batch.ids[5:8], images[5:8], labels[5:8])
    assert probe.run(model, part, RANDOM)["fooled"].to_pylist() == fooled[5:8].tolist()
    with pytest.raises(AccessDenied):
        probe.run(model.restrict(Access.LABELS), batch, RANDOM)


def test_cost_is_exact_for_a_model_that_stands() -> None:
    class Stubborn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)) + 9, images.mean(dim=(1, 2, 3))], dim=1)

    model = TorchModel(Stubborn(), ModelSpec("s", ("a", "b"), (32, 32)))
    batch = Batch(["a", "b"], torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))
    probe = AdversarialPatch(steps=4, restarts=2, names=("fog",))
    probe.run(model, batch, RANDOM)
    assert model.ledger.totals.forward == probe.cost(2).forward
    assert model.ledger.totals.backward == probe.cost(2).backward
