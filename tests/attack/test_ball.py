import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.linalg import vector_norm

from snellen.attack._ball import check_images, make_ball
from snellen.errors import InvalidInput
from snellen.randomness import SampleRandom

NORMS = ["linf", "l2"]


def generators(count):
    return SampleRandom(0, "test").generators([str(i) for i in range(count)])


@settings(max_examples=40, deadline=None)
@given(norm=st.sampled_from(NORMS), eps=st.floats(1e-3, 3), spread=st.floats(0, 5), seed=st.integers(0, 999))
def test_projection_ends_in_ball_and_box_and_is_idempotent(norm, eps, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(4, 3, 5, 5, generator=generator)
    ball = make_ball(norm, centre, eps)
    points = ball.project_(centre + spread * torch.randn(centre.shape, generator=generator))
    assert (ball.distance(points) <= eps + 1e-6).all()
    assert points.min() >= 0
    assert points.max() <= 1
    assert torch.allclose(ball.project_(points.clone()), points, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay_where_they_are(norm):
    centre = torch.full((2, 3, 4, 4), 0.5)
    inside = centre + 0.001
    assert torch.allclose(make_ball(norm, centre, 0.1).project_(inside.clone()), inside, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_no_direction_of_length_one_beats_the_steepest(norm):
    gradient = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ball = make_ball(norm, torch.full_like(gradient, 0.5), 0.1)
    steepest = ball.direction(gradient)
    others = torch.randn(500, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    length = (
        others.abs().amax((1, 2, 3), keepdim=True)
        if norm == "linf"
        else vector_norm(others, dim=(1, 2, 3), keepdim=True)
    )
    assert ((others / length * gradient).sum((1, 2, 3)) <= (steepest * gradient).sum() + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_moves_nothing(norm):
    gradient = torch.zeros(2, 3, 4, 4)
    assert not make_ball(norm, gradient, 0.1).direction(gradient).any()


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_does_not_depend_on_the_other_images(norm):
    centre = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    together = make_ball(norm, centre, 0.1).start(generators(6))
    alone = make_ball(norm, centre[4:5], 0.1).start(generators(6)[4:5])
    assert torch.equal(together[4:5], alone)


@pytest.mark.parametrize("norm", NORMS)
def test_boundary_starts_lie_on_the_sphere_and_interior_ones_fill_the_ball(norm):
    ball = make_ball(norm, torch.full((200, 1, 1, 2), 0.5), 0.3)
    on_sphere = ball.distance(ball.start(generators(200), boundary=True))
    inside = ball.distance(ball.start(generators(200)))
    assert torch.allclose(on_sphere, torch.full_like(on_sphere, 0.3), atol=1e-6)
    # Uniform in two dimensions: half of the points lie within eps / sqrt(2).
    assert 0.38 < (inside < 0.3 / 2**0.5).float().mean() < 0.62


@pytest.mark.parametrize("norm", NORMS)
def test_memory_layout_survives(norm):
    centre = torch.rand(4, 3, 6, 6).to(memory_format=torch.channels_last)
    ball = make_ball(norm, centre, 0.1)
    for points in (ball.start(generators(4)), ball.keep(torch.tensor([True, False, True, True])).start(None)):
        assert points.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.full((2, 3, 4, 4), 1.1), torch.zeros(2, dtype=torch.int64)),
        (torch.full((2, 3, 4, 4), float("nan")), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2)),
        (torch.zeros(3, 4, 4), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_bad_batches_are_refused(images, labels):
    with pytest.raises(InvalidInput):
        check_images(images, labels)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0), ("l2", -1.0), ("l2", float("nan")), ("l1", 0.1)])
def test_bad_balls_are_refused(norm, eps):
    with pytest.raises(InvalidInput):
        make_ball(norm, torch.zeros(1, 3, 4, 4), eps)
