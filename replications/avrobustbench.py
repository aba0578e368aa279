"""AVRobustBench: does spoiling sight and sound together cost more than spoiling either?

Claim (Maharana et al., 2025): audio-visual models decline when both streams are corrupted by one cause. Protocol:
scikit-learn's digits enlarged to 64 px, each with a chord of three notes of its class, half a second at 4 kHz, out of
tune by a few percent, every note missing in 12 % of the clips; a small transformer block over image patches and
spectrogram frames; 1,297 training and 500 test clips; 3 seeds of initialisation and of the noise; severity 5 of all
fifteen causes. The claim holds where the drop under both streams exceeds the larger of the drops under one, for 12 of
15 causes in each seed. The paper's test-time adaptation AV2C, the other half of its claim, waits for the repair family.

The missing notes came after a first run: with all notes in place the sound alone gave an accuracy of 1.00, the network
did not look at the picture (no frames cost anything), and only 4, 12 and 6 causes passed at seed 0. A model that uses
one stream cannot test a claim on two. Thresholds were left as they were: now 9, 13 and 13 causes pass, still not all.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snellen.randomness import torch_generator
from snellen.replication import Claim
from snellen.shift.audio_visual import AV_CORRUPTIONS, evaluate_audio_visual

PAPER = "AVRobustBench: Benchmarking the Robustness of Audio-Visual Recognition Models at Test-Time (2025)"
SEEDS, NEEDED = 3, 12
SIDE, RATE, SECONDS = 64, 4000, 0.5
WINDOW, HOP = 128, 125
TEST, EPOCHS, WIDTH = 500, 8, 48
MISSING_NOTES = 0.12


def replicate(seed: int) -> list[Claim]:
    torch.set_num_threads(1)
    runs = [evaluate(seed * SEEDS + k) for k in range(SEEDS)]
    worse = [[cause for cause in AV_CORRUPTIONS if run[cause][0] > max(run[cause][1:3])] for run in runs]
    for run in runs:
        print("drop under both, frames alone, sound alone, interaction:")
        print("; ".join(f"{cause} " + " ".join(f"{value:+.2f}" for value in run[cause]) for cause in run))
    means = [run["mean"][0] for run in runs]
    return [
        Claim(
            "Both streams spoilt cost more than the worse of one",
            f"{NEEDED} or more of 15 causes at severity 5, in 3 of 3 seeds",
            ", ".join(str(len(causes)) for causes in worse) + " of 15",
            min(map(len, worse)) >= NEEDED,
        ),
        Claim(
            "The model declines on the mean over causes",
            "mean drop above 0 in 3 of 3 seeds",
            ", ".join(f"{mean:.2f}" for mean in means),
            min(means) > 0,
        ),
    ]


def evaluate(seed: int) -> dict[str, tuple[float, float, float, float]]:
    """By cause: the drops under both, frames alone and sound alone, and the interaction."""
    frames, waves, labels = clips(torch_generator("avrobustbench", seed))
    network = train(frames[TEST:], waves[TEST:], labels[TEST:], seed)
    table = evaluate_audio_visual(
        network,
        frames[:TEST],
        waves[:TEST],
        labels[:TEST],
        [str(index) for index in range(TEST)],
        seed=seed,
        severities=(5.0,),
        rate=RATE,
        model_rate=RATE,
    ).to_pylist()
    print(f"clean accuracy {table[0]['accuracy']:.3f}")
    both, seen, heard = (
        [row for row in table if row["stream"] == stream and row["corruption"] != "clean"]
        for stream in ("both", "frames", "wave")
    )
    return {
        b["corruption"]: (b["drop"], s["drop"], h["drop"], b["interaction"])
        for b, s, h in zip(both, seen, heard, strict=True)
    }


def clips(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Frames `[N, 1, 3, 64, 64]`, waves `[N, 2000]` and labels of all digits, in random order."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=generator)
    pixels = torch.from_numpy(digits.images).float()[order, None] / 16
    labels = torch.from_numpy(digits.target).long()[order]
    frames = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", align_corners=False).clamp(0, 1)

    # Chords of three notes; classes share their notes, so that a class is a combination.
    notes = 250 * 2 ** (torch.arange(5) / 2)
    chosen = torch.combinations(torch.arange(5), 3)[labels]
    tuning = 1 + 0.03 * torch.randn(len(labels), 3, generator=generator)
    loudness = 0.5 + torch.rand(len(labels), 3, generator=generator)
    phase = 2 * math.pi * torch.rand(len(labels), 3, generator=generator)
    time = torch.arange(int(RATE * SECONDS)) / RATE
    tones = torch.sin(2 * math.pi * (notes[chosen] * tuning)[..., None] * time + phase[..., None])
    played = torch.rand(len(labels), 3, generator=generator) > MISSING_NOTES
    waves = 0.1 * ((loudness * played)[..., None] * tones).sum(1)
    hiss = 0.01 * torch.randn(waves.shape, generator=generator)
    return frames[:, None].expand(-1, 1, 3, -1, -1), (waves + hiss).clamp(-1, 1), labels


class FusedNetwork(nn.Module):
    """Tokens of 16 px patches and of spectrogram frames in one transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.sight = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, WIDTH, 4, 4))
        self.hearing = nn.Linear(WINDOW // 2 + 1, WIDTH)
        tokens = (SIDE // 16) ** 2 + 1 + int(RATE * SECONDS) // HOP
        self.place = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))
        self.register_buffer("window", torch.hann_window(WINDOW))

    def forward(self, frames: Tensor, waves: Tensor) -> Tensor:
        """`[B, 1, 3, 64, 64]`, `[B, 2000]` -> logits `[B, 10]`."""
        pictures = self.sight(frames[:, 0]).flatten(2).transpose(1, 2)
        spectrum = torch.stft(waves, WINDOW, HOP, window=self.get_buffer("window"), return_complex=True).abs()
        sounds = self.hearing((spectrum + 0.01).log().transpose(1, 2))
        tokens = self.block(torch.cat((pictures, sounds), dim=1) + self.place)
        return self.head(tokens.mean(1))


def train(frames: Tensor, waves: Tensor, labels: Tensor, seed: int) -> FusedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FusedNetwork()
        batches = EPOCHS * math.ceil(len(labels) / 64)
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, batches)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(labels)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(network(frames[batch], waves[batch]), labels[batch]).backward()
                optimiser.step()
                schedule.step()
    return network.eval()
