"""`python -m snellen.demo --faults corner-tag:0.9,over-confidence`: train a demo network with known faults."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from snellen.demo.digits import demo_images
from snellen.demo.faults import DESCRIPTIONS, Fault
from snellen.demo.network import evaluate, save_network
from snellen.demo.training import EPOCHS, train
from snellen.errors import SnellenError


def main(arguments: list[str] | None = None) -> int:
    kinds = "\n".join(f"  {kind:20s} {text}" for kind, text in DESCRIPTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m snellen.demo",
        description=__doc__,
        epilog=f"faults (kind, kind:strength or kind:strength:class):\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--faults", default="", help="comma-separated; none gives a healthy network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("demo.safetensors"))
    options = parser.parse_args(arguments)
    try:
        faults = [Fault.parse(text) for text in options.faults.split(",") if text]
    except SnellenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    network = train(
        faults,
        options.seed,
        options.epochs,
        lambda epoch, loss: print(f"epoch {epoch}/{options.epochs}  loss {loss:.3f}", flush=True),
    )
    test = demo_images("test")
    accuracy = evaluate(network, test.images, torch.from_numpy(test.labels))
    planted = json.dumps([vars(fault) for fault in faults])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_network(network, options.out, {"faults": planted, "seed": str(options.seed)})
    print(f"test accuracy {accuracy:.3f}; wrote {options.out}")
    print(f"examine it:  snellen audit demo:{options.out} demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
