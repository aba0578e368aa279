import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snellen.attack._loss import cross_entropy, dlr, input_gradient, loss_function, targeted_dlr
from snellen.errors import InvalidInput


def logits(seed=0, rows=32, classes=10):
    return 5 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.1, 50), shift=st.floats(-20, 20), seed=st.integers(0, 999))
def test_ratio_losses_ignore_shift_and_scale(scale, shift, seed):
    z = logits(seed).double()
    y = z.argmin(1)
    t = (y + 1) % 10
    assert torch.allclose(dlr(z * scale + shift, y), dlr(z, y), atol=1e-6)
    assert torch.allclose(targeted_dlr(z * scale + shift, y, t), targeted_dlr(z, y, t), atol=1e-6)


def test_cross_entropy_does_not_ignore_scale():
    z = logits()
    y = z.argmax(1)
    assert (cross_entropy(3 * z + 7, y) - cross_entropy(z, y)).abs().max() > 1e-2


def test_dlr_is_positive_exactly_where_the_answer_is_wrong():
    z = logits()
    y = torch.arange(32) % 10
    assert torch.equal(dlr(z, y) > 0, z.argmax(1) != y)


def test_dlr_as_written_in_the_paper():
    z = torch.tensor([[4.0, 1.0, 3.0, -2.0], [4.0, 1.0, 3.0, -2.0]])
    assert dlr(z, torch.tensor([0, 3])).tolist() == pytest.approx([-(4 - 3) / (4 - 1), (4 + 2) / (4 - 1)])
    assert targeted_dlr(z, torch.tensor([0, 0]), torch.tensor([3, 2])).tolist() == pytest.approx(
        [-(4 + 2) / (4 - (1 - 2) / 2), -(4 - 3) / (4 - (1 - 2) / 2)]
    )


def test_saturated_logits_blind_cross_entropy_but_not_dlr():
    z = (1000 * logits()).requires_grad_()
    y = z.argmax(1)
    gap = z.topk(2).values.diff().abs().squeeze(1) > 200
    assert gap.sum() > 20
    assert not input_gradient(cross_entropy(z, y), z)[gap].any()
    assert input_gradient(dlr(z, y), z)[gap].abs().amax(1).gt(0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_refused(classes):
    z, y = logits(classes=classes), torch.zeros(32, dtype=torch.int64)
    with pytest.raises(InvalidInput, match="4 classes"):
        targeted_dlr(z, y, y)
    if classes == 2:
        with pytest.raises(InvalidInput, match="3 classes"):
            dlr(z, y)


def test_unknown_losses_are_refused():
    with pytest.raises(InvalidInput, match="'ce', 'dlr'"):
        loss_function("hinge")
