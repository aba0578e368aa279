"""Asking an inference server: connections kept open, retries with back-off, each attempt booked before it is sent."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import numpy as np

from snellen.errors import InvalidInput, ModelUnavailable
from snellen.models.ledger import QueryLedger
from snellen.models.open_inference import (
    BINARY_EXTENSIONS,
    BrokenAnswer,
    decode,
    encode,
    read_signature,
)

RETRIED = (429, 502, 503, 504)
LONGEST_WAIT = 300.0
"""Seconds; a server that asks for a longer pause ends the run, which can be resumed."""
USUAL_BATCH = 32
"""Images a request where the server does not state its maximum."""
TOKEN_VARIABLE = "SNELLEN_TOKEN"

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


@dataclass(frozen=True)
class Remote:
    """How a server is asked.

    concurrency: requests under way at a time. timeout: seconds without an answer before a request is given up. retries:
    further attempts after 429, 502, 503, 504 and broken connections. backoff: seconds before the first of them, doubled
    each time, up to 30, times a random factor from 0.5 to 1. rate: most requests a second, None for no limit. batch:
    images a request, None for what the server states, else 32. token: name of the environment variable with the bearer
    token, which is sent and neither logged nor stored.
    """

    concurrency: int = 8
    timeout: float = 30.0
    retries: int = 6
    backoff: float = 0.5
    rate: float | None = None
    batch: int | None = None
    token: str = TOKEN_VARIABLE

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 256:
            raise InvalidInput(f"remote concurrency must be 1 to 256 requests, got {self.concurrency}")
        if not self.timeout > 0 or not self.backoff >= 0 or self.retries < 0:
            raise InvalidInput("remote timeout must be above 0, backoff and retries at least 0")
        if self.rate is not None and not self.rate > 0:
            raise InvalidInput(f"remote rate must be above 0 requests a second, got {self.rate:g}")
        if self.batch is not None and self.batch < 1:
            raise InvalidInput(f"remote batch must be at least 1 image, got {self.batch}")


class Endpoint:
    """One model of one server. Safe for several threads; a pickled copy opens connections of its own."""

    def __init__(self, url: str, remote: Remote | None = None) -> None:
        self.url = check_address(url)
        self.remote = remote or Remote()
        self._reset()
        self.signature = read_signature(self._get(self.url), self.url)
        parts = urlsplit(self.url)
        told = self._optional(f"{parts.scheme}://{parts.netloc}/v2").get("extensions")
        extensions = {str(name) for name in told} if isinstance(told, list) else set()
        self.binary = bool(extensions & BINARY_EXTENSIONS)
        if self.signature.input.datatype == "FP16" and not self.binary:
            raise InvalidInput(f"{self.url} takes FP16, which JSON cannot carry, and has no binary tensor extension")
        stated = (
            self._optional(f"{self.url}/config").get("max_batch_size") if "model_configuration" in extensions else 0
        )
        largest = stated if isinstance(stated, int) and stated > 0 else USUAL_BATCH
        self.batch = self.signature.fixed_batch or self.remote.batch or largest

    def _reset(self) -> None:
        self._client: httpx.Client | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._free_from = 0.0

    def __getstate__(self) -> dict[str, object]:
        return {key: self.__dict__[key] for key in ("url", "remote", "signature", "binary", "batch")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def infer(self, images: np.ndarray, ledger: QueryLedger) -> np.ndarray:
        """The output tensor of one request. images: float32 `[B, C, H, W]`, as the network reads them.

        Each attempt is booked; one that certainly never reached the server is taken back. Raises ModelUnavailable
        after the last attempt, InvalidInput when the server refuses, BudgetExhausted when an attempt does not fit.
        """
        headers, body = encode(images, self.signature, self.binary)
        room = 1_000_000 + 1000 * len(images) * (self.signature.classes or 10_000)
        trouble = ""
        for attempt in range(self.remote.retries + 1):
            self._wait_for_turn(attempt)
            ledger.charge(forward=len(images), requests=1)
            try:
                answer = self._attempt("POST", f"{self.url}/infer", room, body, headers)
            except _NEVER_SENT as error:
                ledger.refund(forward=len(images), requests=1)
                answer = self._told(error)
            if isinstance(answer, str):
                trouble = answer
                continue
            if answer.status != 200:
                raise InvalidInput(f"{self.url} refused a request: {self._reason(answer)}")
            try:
                return decode(answer.content, answer.headers, self.signature)
            except BrokenAnswer as error:
                trouble = f"an answer that cannot be read ({error})"
        raise ModelUnavailable(
            f"{self.url} gave no usable answer in {self.remote.retries + 1} attempts, the last: {trouble}; what is"
            " stored is safe, and the same command goes on when the server is back"
        )

    @property
    def tells_token(self) -> bool:
        """A token is set and would travel over a network unencrypted."""
        parts = urlsplit(self.url)
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        return parts.scheme == "http" and not here and bool(os.environ.get(self.remote.token))

    def stop(self) -> None:
        """No further attempt and no further waiting by any thread, until `resume`."""
        self._stop.set()

    def resume(self) -> None:
        self._stop.clear()

    def _wait_for_turn(self, attempt: int) -> None:
        delay = min(30.0, self.remote.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1) if attempt else 0.0
        with self._lock:
            start = max(time.monotonic() + delay, self._free_from)
            if self.remote.rate is not None:
                self._free_from = start + 1 / self.remote.rate
        if self._stop.wait(max(0.0, start - time.monotonic())):
            raise ModelUnavailable(f"asking {self.url} was stopped")

    def _hold(self, retry_after: str | None) -> None:
        """Nobody asks before the server wants to be asked again."""
        seconds = _seconds(retry_after)
        if seconds > LONGEST_WAIT:
            raise ModelUnavailable(
                f"{self.url} asks for a pause of {seconds:.0f} s; give the same command again after it"
            )
        with self._lock:
            self._free_from = max(self._free_from, time.monotonic() + seconds)

    def _attempt(
        self, method: str, url: str, room: int, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer | str:
        """The answer, or what went wrong and may go better the next time. What was never sent raises."""
        try:
            answer = self._exchange(method, url, room, body, headers)
        except _NEVER_SENT:
            raise
        except (httpx.TransportError, httpx.DecodingError) as error:
            return self._told(error)
        if answer.status not in RETRIED:
            return answer
        self._hold(answer.headers.get("Retry-After"))
        return f"status {answer.status}"

    def _exchange(self, method: str, url: str, room: int, body: bytes | None, headers: dict[str, str] | None) -> Answer:
        """One request; an answer longer than `room` bytes is cut off, so that no server can fill our memory."""
        with self._lock:
            if self._client is None:
                connections = self.remote.concurrency
                limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
                timeout = httpx.Timeout(self.remote.timeout, connect=min(10.0, self.remote.timeout))
                self._client = httpx.Client(limits=limits, timeout=timeout)
            client = self._client
        headers = {"Content-Type": "application/json", **(headers or {}), **self._authorisation()}
        with client.stream(method, url, content=body, headers=headers) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > room:
                    break
            return Answer(response.status_code, response.headers, bytes(content[:room]))

    def _authorisation(self) -> dict[str, str]:
        token = os.environ.get(self.remote.token, "")
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise InvalidInput(f"the environment variable {self.remote.token} holds characters no token may have")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _get(self, url: str) -> object:
        """A JSON document about the model, which is no query and is not booked."""
        trouble = ""
        for attempt in range(self.remote.retries + 1):
            self._wait_for_turn(attempt)
            try:
                answer = self._attempt("GET", url, 10_000_000)
            except _NEVER_SENT as error:
                raise InvalidInput(f"no server answers at {url}: {self._told(error)}") from error
            if isinstance(answer, str):
                trouble = answer
                continue
            if answer.status != 200:
                raise InvalidInput(f"{url} cannot be read: {self._reason(answer)}")
            try:
                return json.loads(answer.content)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{url} does not answer with JSON; is it an Open Inference server?") from error
        raise ModelUnavailable(
            f"{url} gave no usable answer in {self.remote.retries + 1} attempts, the last: {trouble}"
        )

    def _optional(self, url: str) -> dict[str, object]:
        try:
            document = self._get(url)
        except InvalidInput:
            return {}
        return document if isinstance(document, dict) else {}

    def _reason(self, answer: Answer) -> str:
        if answer.status in (401, 403):
            return f"status {answer.status}; put the bearer token into the environment variable {self.remote.token}"
        try:
            told = json.loads(answer.content)["error"]
        except (ValueError, KeyError, TypeError, RecursionError):
            told = answer.content[:200].decode(errors="replace")
        return self._without_token(f"status {answer.status}, {' '.join(str(told).split())[:300]}")

    def _told(self, error: Exception) -> str:
        return self._without_token(f"{type(error).__name__} {str(error)[:200]}".strip())

    def _without_token(self, text: str) -> str:
        token = os.environ.get(self.remote.token, "")
        return text.replace(token, "***") if token else text


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx.Headers
    content: bytes


def check_address(url: str) -> str:
    """The address without a slash at its end. Refuses one that holds a secret, since addresses are stored."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidInput(
            "the address of a server must not hold user, password or query, since it is stored with the run; put a"
            f" bearer token into the environment variable {TOKEN_VARIABLE}"
        )
    if not parts.netloc or not re.fullmatch(r"(/[^/]+)*/v2/models/[^/]+(/versions/[^/]+)?/?", parts.path):
        raise InvalidInput(f"model address {url!r} must read http(s)://host/v2/models/NAME[/versions/VERSION]")
    return url.rstrip("/")


def _seconds(retry_after: str | None) -> float:
    """`Retry-After` as seconds from now: a number or a date; 0 when it is neither."""
    if not retry_after:
        return 0.0
    if re.fullmatch(r"\d{1,9}(\.\d+)?", retry_after.strip()):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
