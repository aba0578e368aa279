"""Examine a model of your own from Python: a module, arrays in memory, a plan of your choice.

python examples/own_model.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from snellen.audit import Examination, Plan
from snellen.data import Dataset
from snellen.models import ModelSpec, TorchModel
from snellen.report import write_report

digits = load_digits()
images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)
labels = torch.from_numpy(digits.target)

torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
optimiser = torch.optim.Adam(network.parameters(), 1e-2)
for _ in range(60):
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(images[:1000]), labels[:1000]).backward()
    optimiser.step()

classes = [str(digit) for digit in range(10)]
model = TorchModel(network, ModelSpec("digits", tuple(classes), (8, 8), mean=(0.0,), std=(1.0,)))
thickness = np.where(digits.images[1000:].mean((1, 2)) > 5, "bold", "thin")
data = Dataset.from_arrays(images[1000:], digits.target[1000:], classes, {"stroke": thickness})

plan = Plan.model_validate({"probes": ["accuracy", "calibration", "subgroup", {"attack/pgd": {"steps": 10}}]})
audit = Examination(model, data, plan, "runs/digits").run()
for statement in audit.statements[:5]:
    print(statement.severity, "-", statement.title)
print(write_report(audit, ("digits", "scikit-learn digits")))
