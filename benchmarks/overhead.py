"""How much slower is a method than the passes it cannot do without?

    python benchmarks/overhead.py [--quick] [--only attack/pgd ...] [--batch 8] [--threads 1]

For every entry two things are timed in turn, in one process, on one model and batch: the method, and a bare loop of
the passes that it needs, on the same frozen channels-last network. The overhead is the ratio of the medians; 1.00
means that nothing but the passes was paid for. Peers that are installed are measured against the same loop. A table
comes first, one line of JSON last.

To add a method: write a function that takes the `Bench` and returns an `Entry`, and put it in ENTRIES.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import timm
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from snellen.attack.apgd import apgd
from snellen.attack.pgd import pgd
from snellen.certify.smoothing import certify
from snellen.models import ModelSpec, TorchModel
from snellen.randomness import SampleRandom

CLASSES = 1000


@dataclass(frozen=True)
class Bench:
    """What all entries share. network: frozen, channels-last, eval; it reads what `model` gives it."""

    model: TorchModel
    network: nn.Module
    original: nn.Module
    """The network as a researcher has it: parameters ask for gradients. Peers get this one."""
    images: Tensor
    labels: Tensor
    steps: int
    copies: int

    def generators(self) -> list[Generator]:
        return SampleRandom(0, "overhead").generators([str(i) for i in range(len(self.images))])

    def forward(self, times: int, images: Tensor | None = None) -> None:
        """Forward passes without a graph, and nothing else."""
        batch = self.images if images is None else images
        with torch.no_grad():
            for _ in range(times):
                self.network(batch)

    def forward_backward(self, times: int) -> None:
        """Forward and backward passes to the input, and nothing else."""
        images = self.images.clone().requires_grad_()
        for _ in range(times):
            loss = F.cross_entropy(self.network(images), self.labels, reduction="sum")
            torch.autograd.grad(loss, images)


@dataclass(frozen=True)
class Entry:
    """method: the call that is judged. ideal: the passes it cannot do without. peers: the same work elsewhere."""

    name: str
    work: str
    method: Callable[[], object]
    ideal: Callable[[], object]
    peers: Mapping[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """Medians in seconds; overheads are ratios to `ideal_s`."""

    name: str
    work: str
    ideal_s: float
    method_s: float
    overhead: float
    spread: float
    """Largest minus smallest ratio over the repetitions."""
    peers: dict[str, float]


def predictions(bench: Bench) -> Entry:
    return Entry(
        "predictions",
        "1 forward",
        method=lambda: bench.model.labels(bench.images),
        ideal=lambda: bench.forward(1),
    )


def attack_pgd(bench: Bench) -> Entry:
    eps, length, steps = 4 / 255, 1 / 255, bench.steps
    return Entry(
        "attack/pgd",
        f"{steps} forward and backward, 1 forward",
        method=lambda: pgd(
            bench.model, bench.images, bench.labels, eps,
            steps=steps, step_size=length, generators=bench.generators(), stop_early=False,
        ),
        ideal=lambda: (bench.forward_backward(steps), bench.forward(1)),
        peers=_pgd_peers(bench, eps, length),
    )  # fmt: skip


def _pgd_peers(bench: Bench, eps: float, length: float) -> dict[str, Callable[[], object]]:
    peers: dict[str, Callable[[], object]] = {}
    contiguous = bench.images.contiguous()
    try:
        import torchattacks

        attack = torchattacks.PGD(bench.original, eps=eps, alpha=length, steps=bench.steps, random_start=True)

        def torchattacks_pgd() -> None:
            adversarial = attack(contiguous, bench.labels)
            with torch.no_grad():
                bench.original(adversarial)  # torchattacks gives images only; the verdict needs this pass

        peers["torchattacks"] = torchattacks_pgd
    except ImportError:
        pass
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(bench.original, bounds=(0, 1))
        runner = foolbox.attacks.LinfPGD(abs_stepsize=length, steps=bench.steps, random_start=True)
        peers["foolbox"] = lambda: runner(wrapped, contiguous, bench.labels, epsilons=eps)
    except ImportError:
        pass
    return peers


def attack_apgd(bench: Bench) -> Entry:
    return Entry(
        "attack/apgd",
        f"{bench.steps} forward and backward, 1 forward",
        method=lambda: apgd(
            bench.model, bench.images, bench.labels, 4 / 255,
            steps=bench.steps, generators=bench.generators(), stop_early=False,
        ),
        ideal=lambda: (bench.forward_backward(bench.steps), bench.forward(1)),
    )  # fmt: skip


def certify_smoothing(bench: Bench) -> Entry:
    n0, n, few = bench.copies // 4, bench.copies, bench.images[:2]
    batch = bench.images[:1].expand(32, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    passes = len(few) * (n0 + n) // 32  # both draws fill whole batches: copies is a multiple of 64
    return Entry(
        "certify/smoothing",
        f"{passes * 32} forward in batches of 32",
        method=lambda: certify(
            bench.model, few, 0.25, bench.generators()[:2], CLASSES, n0=n0, n=n, alpha=0.01, chunk=32
        ),
        ideal=lambda: bench.forward(passes, batch),
    )


ENTRIES: Sequence[Callable[[Bench], Entry]] = (predictions, attack_pgd, attack_apgd, certify_smoothing)


def measure(entry: Entry, repetitions: int) -> Measured:
    """Method, ideal and peers in turn, so that a slow minute of the machine hits them alike."""
    calls = {"method": entry.method, "ideal": entry.ideal, **entry.peers}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repetition > 0:  # the first round warms caches and allocator
                seconds[name].append(time.perf_counter() - start)

    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [m / i for m, i in zip(seconds["method"], seconds["ideal"], strict=True)]
    return Measured(
        name=entry.name,
        work=entry.work,
        ideal_s=middle["ideal"],
        method_s=middle["method"],
        overhead=middle["method"] / middle["ideal"],
        spread=max(ratios) - min(ratios),
        peers={name: middle[name] / middle["ideal"] for name in entry.peers},
    )


def make_bench(batch: int, size: int, steps: int, copies: int) -> Bench:
    """ResNet-18 with random weights; a random network's passes cost what a trained one's cost."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = timm.create_model("resnet18", num_classes=CLASSES).eval()
    spec = ModelSpec("resnet18", tuple(map(str, range(CLASSES))), (size, size))
    model = TorchModel(original, spec)
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    return Bench(model, model.module, original, images, model.labels(images), steps, copies)


def main() -> None:
    parser = argparse.ArgumentParser(description="Wall time over the time of the passes that cannot be done without.")
    parser.add_argument("--quick", action="store_true", help="smaller images and batch, fewer repetitions")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these entries")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        bench, repetitions = make_bench(batch=4, size=128, steps=3, copies=64), 3
    else:
        bench, repetitions = make_bench(batch=arguments.batch, size=224, steps=4, copies=64), 3

    entries = [make(bench) for make in ENTRIES]
    results = [measure(entry, repetitions) for entry in entries if entry.name in (arguments.only or [entry.name])]

    print(f"{'method':20} {'overhead':>8} {'spread':>7} {'ideal s':>8}  peers / passes")
    for result in results:
        peers = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result.peers.items())
        figures = f"{result.overhead:8.3f} {result.spread:7.3f} {result.ideal_s:8.2f}"
        print(f"{result.name:20} {figures}  {result.work}; {peers}")
    setting = {"batch": len(bench.images), "size": bench.images.shape[-1], "threads": arguments.threads}
    print(json.dumps({"setting": setting | {"machine": platform.machine()}, "results": [asdict(r) for r in results]}))


if __name__ == "__main__":
    main()
