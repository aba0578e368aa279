"""A small Open Inference Protocol v2 server that can be told to misbehave, and counts what it was asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from snellen.models.open_inference import BINARY_HEADER

CLASSES = ("cat", "dog", "owl")


def network() -> torch.nn.Module:
    """Untrained, 16 px, three classes, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(32, 3),
        ).eval()  # fmt: skip


class Server:
    """behaviour: request number (from 0) -> one of "", "429", "500", "503", "drop", "truncate", "garble", "nan",
    "shape", "slow", "forbid". answer: float32 `[B, C, H, W]` -> output array."""

    def __init__(self) -> None:
        self.behaviour: Callable[[int], str] = lambda request: ""
        self.answer: Callable[[np.ndarray], np.ndarray] = logits
        self.input = {"name": "images", "datatype": "FP32", "shape": [-1, 3, 16, 16]}
        self.output = {"name": "logits", "datatype": "FP32", "shape": [-1, 3]}
        self.extensions: list[str] = []
        self.max_batch_size: int | None = None
        self.pause = 0.0
        self.retry_after: str | None = None
        self.requests = 0
        self.images = 0
        self.largest = 0
        self.connections = 0
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/tiny"


_NETWORK = network()


def logits(images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return _NETWORK(torch.from_numpy(images.copy())).numpy()


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with state.lock:
                state.connections += 1

        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            documents: dict[str, object] = {
                "/v2": {"name": "test", "version": "1", "extensions": state.extensions},
                "/v2/models/tiny": {
                    "name": "tiny",
                    "versions": ["1"],
                    "platform": "test",
                    "inputs": [state.input],
                    "outputs": [state.output],
                },
            }
            if state.max_batch_size is not None:
                documents["/v2/models/tiny/config"] = {"max_batch_size": state.max_batch_size}
            found = documents.get(self.path)
            self.reply(200 if found else 404, json.dumps(found or {"error": "no such model"}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            images = read(body, self.headers)
            with state.lock:
                request = state.requests
                state.requests += 1
                state.images += len(images)
                state.largest = max(state.largest, len(images))
                state.headers.append(dict(self.headers))
            time.sleep(state.pause)
            self.misbehave(state.behaviour(request), images)

        def misbehave(self, how: str, images: np.ndarray) -> None:
            if how in ("429", "500", "503"):
                extra = {"Retry-After": state.retry_after} if state.retry_after else {}
                self.reply(int(how), json.dumps({"error": f"told to {self.headers['Authorization']}"}).encode(), extra)
                return
            if how == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if how == "slow":
                time.sleep(1.0)
            output = state.answer(images)
            if how == "nan":
                output = np.full_like(output, np.nan)
            if how == "shape":
                output = output[:, :-1]
            head, content = write(output, state.output, BINARY_HEADER in self.headers)
            if how == "garble":
                content = content.replace(b"{", b"<", 1)
            self.reply(200, content, head, cut=how == "truncate")

        def reply(self, status: int, content: bytes, extra: dict[str, str] | None = None, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *where: object) -> None:
            pass  # a client that was killed leaves a broken pipe

    with Listening(("127.0.0.1", 0), Handler) as listening:
        state.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            listening.shutdown()


def read(body: bytes, headers: object) -> np.ndarray:
    length = int(headers.get(BINARY_HEADER, len(body)))
    tensor = json.loads(body[:length])["inputs"][0]
    dtype = {"FP32": np.float32, "UINT8": np.uint8}[tensor["datatype"]]
    flat = np.frombuffer(body[length:], dtype) if length < len(body) else np.array(tensor["data"], dtype)
    return flat.reshape(tensor["shape"])


def write(output: np.ndarray, described: dict[str, object], binary: bool) -> tuple[dict[str, str], bytes]:
    tensor = {"name": described["name"], "datatype": described["datatype"], "shape": list(output.shape)}
    if not binary or output.dtype == object:
        tensor["data"] = output.ravel().tolist()
        return {}, json.dumps({"model_name": "tiny", "outputs": [tensor]}).encode()
    raw = output.tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"model_name": "tiny", "outputs": [tensor]}).encode()
    return {BINARY_HEADER: str(len(header))}, header + raw
