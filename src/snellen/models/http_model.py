"""A classifier behind an inference server (Open Inference Protocol v2), at SCORES or LABELS access."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from snellen.errors import InvalidInput
from snellen.models.access import Access
from snellen.models.endpoint import Endpoint
from snellen.models.ledger import QueryLedger
from snellen.models.model import Model, check_images, labels_of
from snellen.models.preprocessing import Preprocessing
from snellen.models.spec import ModelSpec
from snellen.randomness import torch_generator


class HttpModel(Model):
    """Sends a batch as several requests at a time and puts the answers together in order.

    An output whose values are probabilities is turned into their logarithm, so that what `scores` gives are logits; the
    server's first answer decides. Values that are not finite are passed on and count as no class. It misleads when the
    server changes its weights under an unchanged name and version: the fingerprint is made of what the server says of
    itself.
    """

    remote = True

    def __init__(self, endpoint: Endpoint, spec: ModelSpec, ledger: QueryLedger | None = None) -> None:
        signature = endpoint.signature
        if signature.size not in (None, spec.input_size) or signature.channels != spec.channels:
            raise InvalidInput(
                f"{endpoint.url} takes {signature.input}, but the images were to be {spec.channels} x"
                f" {spec.input_size[0]} x {spec.input_size[1]}; change --input-size, or --mean and --std (one number"
                " for grey, three for colour)"
            )
        if signature.classes not in (None, spec.num_classes):
            raise InvalidInput(
                f"{endpoint.url} gives {signature.output}, {signature.classes} scores an image, but there are"
                f" {spec.num_classes} class names; give the model's own classes with --classes names.txt"
            )
        if signature.input.datatype == "UINT8" and (any(spec.mean) or set(spec.std) != {1.0}):
            raise InvalidInput(
                f"{endpoint.url} takes uint8 pixels, which are not normalised: leave out --mean and --std"
            )
        self.spec = spec
        self.access = Access.LABELS if signature.labels_only else Access.SCORES
        self.ledger = ledger or QueryLedger()
        self.device = torch.device("cpu")
        self.batch_size = min(256, endpoint.batch * endpoint.remote.concurrency)
        self._endpoint = endpoint
        self._preprocess = Preprocessing(spec, self.device)
        self._probabilities: bool | None = False if signature.labels_only else None

    def __call__(self, images: Tensor) -> Tensor:
        self.require(Access.SCORES, "reading scores")
        if self._probabilities is None:
            self.try_out()
        scores = torch.from_numpy(self._ask(images, self._scores))
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log() if self._probabilities else scores

    def labels(self, images: Tensor) -> Tensor:
        if self.access >= Access.SCORES:
            return labels_of(self.scores(images))
        return torch.from_numpy(self._ask(images, self._labels))

    def try_out(self) -> None:
        """One fixed image, booked as any other, so that a wrong spec is told before the run begins."""
        shape = (1, self.spec.channels, *self.spec.input_size)
        image = torch.rand(shape, generator=torch_generator("try out"))
        if self.access < Access.SCORES:
            self.labels(image)
            return
        scores = self._ask(image, self._scores)
        self._probabilities = bool((scores >= 0).all() and abs(float(scores.sum()) - 1) < 1e-3)

    def _ask(self, images: Tensor, read: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
        check_images(images, self.spec.channels)
        self.ledger.check(len(images))  # a pass that cannot be finished is not begun
        pixels = self._preprocess(images.detach()).contiguous().numpy()
        size = self._endpoint.batch
        chunks = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        if len(chunks) == 1:
            return self._one(chunks[0], read)
        with ThreadPoolExecutor(self._endpoint.remote.concurrency, thread_name_prefix="request") as pool:
            futures = [pool.submit(self._one, chunk, read) for chunk in chunks]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                failed = [future for future in futures if future in done and future.exception()]
                return failed[0].result() if failed else np.concatenate([future.result() for future in futures])
            finally:
                self._endpoint.stop()  # after a failure or Ctrl-C nobody goes on asking
                pool.shutdown(cancel_futures=True)
                self._endpoint.resume()

    def _one(self, pixels: np.ndarray, read: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
        count = len(pixels)
        if self._endpoint.signature.fixed_batch is not None and count < self._endpoint.batch:
            filling = np.zeros((self._endpoint.batch - count, *pixels.shape[1:]), pixels.dtype)
            pixels = np.concatenate([pixels, filling])
        return read(self._endpoint.infer(pixels, self.ledger), len(pixels))[:count]

    def _scores(self, answer: np.ndarray, sent: int) -> np.ndarray:
        expected = (sent, self.spec.num_classes)
        if answer.dtype == object or answer.size != sent * self.spec.num_classes or answer.shape[:1] != (sent,):
            raise InvalidInput(
                f"{self._endpoint.url} gave {list(answer.shape)} for {sent} images, but {self.spec.num_classes} class"
                f" names need {list(expected)}; give the model's own classes with --classes names.txt"
            )
        return answer.reshape(expected).astype(np.float32)

    def _labels(self, answer: np.ndarray, sent: int) -> np.ndarray:
        if answer.size != sent:
            raise InvalidInput(
                f"{self._endpoint.url} gave {list(answer.shape)} for {sent} images; a class each is needed"
            )
        if answer.dtype != object:
            outside = [int(value) for value in answer.ravel() if not 0 <= value < self.spec.num_classes]
            if outside:
                raise InvalidInput(
                    f"{self._endpoint.url} gave the class {outside[0]}, but there are {self.spec.num_classes} names"
                )
            return answer.reshape(sent).astype(np.int64)
        indices = [self.spec.class_index(str(name)) for name in answer.ravel()]
        if None in indices:
            unknown = str(answer.ravel()[indices.index(None)])
            raise InvalidInput(
                f"{self._endpoint.url} gave the class {unknown[:80]!r}, which is not among the class names"
            )
        return np.array(indices, dtype=np.int64)
