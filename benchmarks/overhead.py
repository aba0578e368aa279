"""How much slower is a method than the passes it cannot do without?

    python benchmarks/overhead.py [--quick] [--only attack/pgd ...] [--batch 8] [--threads 1] [--record]

For every entry two things are timed in turn, in one process, on one model and batch: the method, and a bare loop of
the passes that it needs, on the same frozen channels-last network. The overhead is the ratio of the medians; 1.00
means that nothing but the passes was paid for. Peers that are installed are measured against the same loop. A table
comes first, one line of JSON last; --record writes the table into benchmarks/results.json.

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

from _record import machine_state, record_table
from snellen.attack.apgd import apgd
from snellen.attack.pgd import pgd
from snellen.certify.smoothing import certify
from snellen.explain.cam import class_activation_map
from snellen.explain.gradients import integrated_gradients, smooth_grad
from snellen.models import ModelSpec, TorchModel
from snellen.probe import Batch
from snellen.randomness import SampleRandom
from snellen.shift.corruptions import Corruptions

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


def explain_integrated_gradients(bench: Bench) -> Entry:
    """Nodes fixed, since how often they are doubled depends on the network; both ends of the way are scored."""
    return Entry(
        "explain/gradients IG",
        f"{bench.steps} forward and backward, 2 forward",
        method=lambda: integrated_gradients(
            bench.model, bench.images, bench.labels, steps=bench.steps, max_steps=bench.steps
        ),
        ideal=lambda: (bench.forward_backward(bench.steps), bench.forward(2)),
        peers=_integrated_gradients_peers(bench),
    )


def _integrated_gradients_peers(bench: Bench) -> dict[str, Callable[[], object]]:
    """captum with the same nodes, and with its convergence delta, which is what our `gap` is."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        return {}
    attribution = IntegratedGradients(bench.original)
    contiguous = bench.images.contiguous()

    def captum(chunk: int | None) -> object:
        return attribution.attribute(
            contiguous, torch.zeros_like(contiguous), target=bench.labels, n_steps=bench.steps,
            method="riemann_middle", internal_batch_size=chunk, return_convergence_delta=True,
        )  # fmt: skip

    # Its default sends all nodes of all images through at once; in chunks of the batch it does what we do.
    return {"captum": lambda: captum(None), "captum in chunks": lambda: captum(len(contiguous))}


def explain_smoothgrad(bench: Bench) -> Entry:
    return Entry(
        "explain/gradients SmoothGrad",
        f"{bench.steps} forward and backward",
        method=lambda: smooth_grad(bench.model, bench.images, bench.labels, bench.generators(), samples=bench.steps),
        ideal=lambda: bench.forward_backward(bench.steps),
    )


def explain_grad_cam(bench: Bench) -> Entry:
    """The map alone, without the curves that judge it. A graph is needed from the last feature map on, not before."""

    def ideal() -> None:
        with torch.no_grad():
            features = bench.network.forward_features(bench.images)
        features.requires_grad_()
        score = bench.network.forward_head(features).gather(1, bench.labels.unsqueeze(1)).sum()
        torch.autograd.grad(score, features)

    return Entry(
        "explain/cam Grad-CAM",
        "1 forward, backward to the last feature map",
        method=lambda: class_activation_map(bench.model, bench.images, bench.labels),
        ideal=ideal,
    )


def shift_corruptions(bench: Bench) -> Entry:
    """The ideal is the forward passes only: making the corrupted images counts as overhead."""
    probe = Corruptions(names=("gaussian_noise", "motion_blur", "jpeg_compression"), severities=(3.0,))
    batch = Batch([str(i) for i in range(len(bench.images))], bench.images, bench.labels)
    passes = 1 + len(probe.names) * len(probe.severities)
    return Entry(
        "shift/corruptions",
        f"{passes} forward, corrupting not included",
        method=lambda: probe.run(bench.model, batch, SampleRandom(0, "overhead")),
        ideal=lambda: bench.forward(passes),
    )


ENTRIES: Sequence[Callable[[Bench], Entry]] = (
    predictions, attack_pgd, attack_apgd, certify_smoothing,
    explain_integrated_gradients, explain_smoothgrad, explain_grad_cam, shift_corruptions,
)  # fmt: skip


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


def record(results: Sequence[Measured], bench: Bench, repetitions: int, state: str, command: str) -> None:
    rows = [
        [
            result.name,
            result.work,
            f"{result.overhead:.3f}",
            f"{result.spread:.3f}",
            f"{result.ideal_s:.2f}",
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in result.peers.items()) or "–",
        ]
        for result in results
    ]
    size = bench.images.shape[-1]
    record_table(
        "overhead",
        "Overhead: wall time over the time of the passes that cannot be done without",
        f"{state}; ResNet-18 at {size} px in float32, batch {len(bench.images)}, medians of {repetitions} alternated"
        f" repetitions after one to warm up; `{command}`. Spread is the largest minus the smallest ratio; peers are set"
        " against the same passes.",
        ["method", "passes", "overhead", "spread", "passes (s)", "peers / passes"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Wall time over the time of the passes that cannot be done without.")
    parser.add_argument("--quick", action="store_true", help="smaller images and batch, fewer repetitions")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure only these entries")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/results.json")
    arguments = parser.parse_args()
    if arguments.record and (arguments.quick or arguments.only):
        parser.error("--record keeps the whole table in its full form; leave --quick and --only out")

    torch.set_num_threads(arguments.threads)
    state = machine_state(arguments.threads)
    if arguments.quick:
        bench, repetitions = make_bench(batch=4, size=128, steps=3, copies=64), 3
    else:
        bench, repetitions = make_bench(batch=arguments.batch, size=224, steps=4, copies=64), 3

    entries = [make(bench) for make in ENTRIES]
    results = [measure(entry, repetitions) for entry in entries if entry.name in (arguments.only or [entry.name])]

    print(f"{'method':28} {'overhead':>8} {'spread':>7} {'ideal s':>8}  peers / passes")
    for result in results:
        peers = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result.peers.items())
        figures = f"{result.overhead:8.3f} {result.spread:7.3f} {result.ideal_s:8.2f}"
        print(f"{result.name:28} {figures}  {result.work}; {peers}")
    if arguments.record:
        command = f"python benchmarks/overhead.py --batch {arguments.batch} --threads {arguments.threads}"
        record(results, bench, repetitions, state, command)
    setting = {"batch": len(bench.images), "size": bench.images.shape[-1], "threads": arguments.threads}
    print(json.dumps({"setting": setting | {"machine": platform.machine()}, "results": [asdict(r) for r in results]}))


if __name__ == "__main__":
    main()
