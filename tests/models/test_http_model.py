"""A model behind a server: the same answers, every image booked, no budget exceeded, no secret told."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tests.models.inference_server import CLASSES, Server, logits, network, serving

from snellen.errors import AccessDenied, BudgetExhausted, InvalidInput, ModelUnavailable
from snellen.models import Access, Model
from snellen.models.endpoint import Remote, check_address
from snellen.models.loading import load_model
from snellen.models.open_inference import BrokenAnswer, TensorSpec, decode, read_signature
from snellen.models.options import ModelOptions

FAST = Remote(backoff=0.01, timeout=5.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def opened(server: Server, remote: Remote = FAST, **options: object) -> Model:
    return load_model(server.url, ModelOptions(classes=CLASSES, remote=remote, **options)).model


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_scores_are_those_of_the_network_behind_the_server(server: Server, extensions: list[str], layout: str) -> None:
    server.extensions = extensions
    if layout == "NHWC":
        server.input = {"name": "images", "datatype": "FP32", "shape": [-1, 16, 16, 3]}
        server.answer = lambda x: logits(x.transpose(0, 3, 1, 2))
    x = images()
    assert torch.allclose(opened(server).scores(x), network()(x), atol=1e-5)


def test_requests_hold_at_most_what_the_server_takes_and_share_connections(server: Server) -> None:
    server.extensions, server.max_batch_size = ["model_configuration"], 4
    model = opened(server, Remote(concurrency=3))
    x = images(30)
    assert torch.allclose(model.scores(x), network()(x), atol=1e-5)
    assert server.largest == 4
    assert server.connections <= 3
    assert model.ledger.totals.forward == server.images == 31  # one image tells whether scores are probabilities
    assert model.ledger.totals.requests == server.requests


def test_a_fixed_batch_is_filled_up_and_the_filling_is_booked(server: Server) -> None:
    server.input = {"name": "images", "datatype": "FP32", "shape": [4, 3, 16, 16]}
    model = opened(server)
    x = images(6)
    assert torch.allclose(model.scores(x), network()(x), atol=1e-5)
    assert model.ledger.totals.forward == server.images


def test_uint8_servers_get_pixels(server: Server) -> None:
    server.input = {"name": "images", "datatype": "UINT8", "shape": [-1, 3, 16, 16]}
    server.answer = lambda x: logits(x.astype(np.float32) / 255)
    x = (images() * 255).round() / 255
    assert torch.allclose(opened(server).scores(x), network()(x), atol=1e-4)
    with pytest.raises(InvalidInput, match="not normalised"):
        opened(server, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def test_probabilities_are_turned_into_logits(server: Server) -> None:
    server.answer = lambda x: torch.from_numpy(logits(x)).softmax(1).numpy()
    x = images()
    assert torch.allclose(opened(server).scores(x), network()(x).log_softmax(1), atol=1e-4)


@pytest.mark.parametrize("kind", ["index", "name"])
def test_an_endpoint_of_classes_grants_labels_only(server: Server, kind: str) -> None:
    server.output = {"name": "class", "datatype": "INT64" if kind == "index" else "BYTES", "shape": [-1]}
    chosen = lambda x: logits(x).argmax(1)  # noqa: E731
    server.answer = chosen if kind == "index" else lambda x: np.array([CLASSES[i] for i in chosen(x)], dtype=object)
    model = opened(server)
    assert model.access is Access.LABELS
    assert torch.equal(model.labels(images()), network()(images()).argmax(1))
    with pytest.raises(AccessDenied):
        model.scores(images())


@pytest.mark.parametrize("trouble", ["429", "503", "drop", "truncate", "garble"])
def test_a_request_that_fails_for_now_is_sent_again_and_booked_again(server: Server, trouble: str) -> None:
    model = opened(server, Remote(backoff=0.01, batch=2))
    server.behaviour = lambda request: trouble if request % 3 == 1 else ""
    x = images(12)
    assert torch.allclose(model.scores(x), network()(x), atol=1e-5)
    assert server.requests > 7
    assert (model.ledger.totals.forward, model.ledger.totals.requests) == (server.images, server.requests)


def test_retry_after_is_honoured(server: Server) -> None:
    server.retry_after = "1"
    server.behaviour = lambda request: "429" if request == 1 else ""
    model = opened(server)
    model.try_out()
    begun = threading.Event()
    timer = threading.Timer(0.9, begun.set)
    timer.start()
    model.scores(images(1))
    assert begun.is_set()  # the second attempt came no earlier than the server wished


def test_a_server_that_asks_for_a_long_pause_ends_the_run(server: Server) -> None:
    server.retry_after = "4000"
    server.behaviour = lambda request: "503"
    with pytest.raises(ModelUnavailable, match="4000 s"):
        opened(server).scores(images(1))


def test_a_server_that_never_recovers_is_given_up_after_the_last_attempt(server: Server) -> None:
    server.behaviour = lambda request: "503"
    model = opened(server, Remote(backoff=0.01, retries=2))
    with pytest.raises(ModelUnavailable, match="3 attempts, the last: status 503"):
        model.scores(images(1))
    assert model.ledger.totals.requests == server.requests == 3


def test_an_error_that_another_attempt_cannot_cure_is_not_repeated(server: Server) -> None:
    server.behaviour = lambda request: "500"
    with pytest.raises(InvalidInput, match="status 500, told to"):
        opened(server).scores(images(1))
    assert server.requests == 1


def test_a_time_out_is_a_broken_connection(server: Server) -> None:
    server.behaviour = lambda request: "slow" if request == 1 else ""
    model = opened(server, Remote(backoff=0.01, timeout=0.3))
    assert torch.allclose(model.scores(images()), network()(images()), atol=1e-5)
    assert model.ledger.totals.requests == server.requests == 3


def test_a_request_that_never_reached_the_server_is_not_booked(server: Server) -> None:
    model = opened(server, Remote(backoff=0.0, retries=2))
    model.try_out()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        model._endpoint.url = f"http://127.0.0.1:{unused.getsockname()[1]}/v2/models/tiny"  # nobody listens there
    with pytest.raises(ModelUnavailable, match="ConnectError"):
        model.scores(images())
    assert model.ledger.totals.forward == server.images == 1


def test_retries_do_not_exceed_the_budget(server: Server) -> None:
    server.behaviour = lambda request: "503" if request else ""
    model = opened(server, Remote(backoff=0.0, retries=50, batch=2, concurrency=4), budget=31)
    with pytest.raises(BudgetExhausted):
        model.scores(images(8))
    assert server.images == model.ledger.totals.forward <= 31


def test_a_pass_that_does_not_fit_the_budget_is_not_begun(server: Server) -> None:
    model = opened(server, budget=4)
    with pytest.raises(BudgetExhausted):
        model.scores(images(4))
    assert server.images == 1


def test_nan_is_no_class(server: Server) -> None:
    server.behaviour = lambda request: "nan" if request else ""
    model = opened(server)
    assert model.labels(images()).tolist() == [-1] * 5


def test_an_answer_of_the_wrong_shape_is_told_with_both_shapes(server: Server) -> None:
    server.output = {"name": "logits", "datatype": "FP32", "shape": [-1, -1]}
    server.behaviour = lambda request: "shape"
    with pytest.raises(InvalidInput, match=r"gave \[1, 2\] for 1 images, but 3 class names need \[1, 3\]"):
        opened(server).scores(images())


def test_a_wrong_input_size_is_told_before_any_query(server: Server) -> None:
    with pytest.raises(InvalidInput, match=r"\[-1, 3, 16, 16\].*3 x 32 x 32"):
        opened(server, input_size=(32, 32))
    with pytest.raises(InvalidInput, match="3 scores an image, but there are 2 class names"):
        load_model(server.url, ModelOptions(classes=("a", "b")))
    assert server.requests == 0


def test_the_token_is_sent_and_never_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNELLEN_TOKEN", "secret-7f3a")
    server.behaviour = lambda request: "500" if request else ""
    model = opened(server)
    model.try_out()
    assert server.headers[0]["Authorization"] == "Bearer secret-7f3a"
    with pytest.raises(InvalidInput) as caught:  # the server's error text repeats the header
        model.scores(images())
    assert "secret-7f3a" not in str(caught.value)
    assert b"secret-7f3a" not in pickle.dumps(model)


def test_a_copy_in_another_process_answers_the_same_and_counts_for_itself(server: Server) -> None:
    model = opened(server)
    model.try_out()
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy.scores(images()), model.scores(images()))
    assert copy.ledger.totals.forward == 5


@pytest.mark.parametrize(
    "url",
    [
        "http://user:password@host/v2/models/m", "http://host/v2/models/m?key=1", "http://host/m",
        "https://host/v2/models/", "http:///v2/models/m", "http://host/v2/models/m/infer",
    ],
)  # fmt: skip
def test_addresses_that_hold_secrets_or_no_model_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_address(url)
    assert "password@" not in str(caught.value)


def test_a_missing_model_and_a_missing_server_are_told(server: Server) -> None:
    with pytest.raises(InvalidInput, match="404, no such model"):
        load_model(server.url + "x")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(InvalidInput, match="no server answers"):
            load_model(f"http://127.0.0.1:{unused.getsockname()[1]}/v2/models/m")


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"inputs": [], "outputs": []}, {"inputs": 3, "outputs": 4},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 7]}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}], "outputs": []},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 5, 8, 8]}], "outputs": []},
    ],
)  # fmt: skip
def test_what_describes_no_image_classifier_is_refused(document: object) -> None:
    with pytest.raises(InvalidInput):
        read_signature(document, "the server")


def test_garbled_answers_never_raise_anything_else() -> None:
    described = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    signature = read_signature(described, "the server")
    good = {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, None]}
    whole = json.dumps({"outputs": [good]}).encode()
    assert np.isnan(decode(whole, {}, signature)[1, 2])
    for end in range(len(whole)):
        with pytest.raises(BrokenAnswer):
            decode(whole[:end], {}, signature)
    wrong: list[dict[str, object]] = [
        {"shape": [2, 4]}, {"shape": "x"}, {"data": 3}, {"data": ["a"] * 6}, {"datatype": "FP33"}, {"shape": [-2, -3]},
        {"parameters": {"binary_data_size": 99}},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(BrokenAnswer):
            decode(json.dumps({"outputs": [{**good, **change}]}).encode(), {}, signature)
    assert signature.output == TensorSpec("y", "FP32", (-1, 3))


def test_settings_out_of_range_are_refused() -> None:
    refused: list[Callable[[], Remote]] = [
        lambda: Remote(concurrency=0), lambda: Remote(timeout=0), lambda: Remote(rate=0), lambda: Remote(batch=0),
        lambda: Remote(retries=-1),
    ]  # fmt: skip
    for make in refused:
        with pytest.raises(InvalidInput):
            make()
