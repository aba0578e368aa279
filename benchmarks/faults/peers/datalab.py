"""cleanlab's Datalab, with what its documentation asks for: labels, the network's probabilities and its features."""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
from benchmarks.faults.peers.handover import Subject
from benchmarks.faults.peers.judging import Statement, Told
from cleanlab import Datalab

ISSUES = {"label": "labels", "near_duplicate": "copies", "underperforming_group": "group"}


def tell(subject: Subject) -> Told:
    begun = time.process_time()
    lab = Datalab({"label": subject.made.labels.tolist()}, label_name="label", task="classification", verbosity=0)
    lab.find_issues(pred_probs=subject.probabilities, features=subject.features)
    seconds = time.process_time() - begun
    statements = []
    for issue, about in ISSUES.items():
        if f"is_{issue}_issue" in lab.get_issues().columns:
            flagged = np.flatnonzero(lab.get_issues(issue)[f"is_{issue}_issue"].to_numpy()).tolist()
            if flagged:  # of a group it has no sentence but the issue's name
                statements.append(Statement(issue, issue.replace("_", " "), flagged, about))
    return Told(f"cleanlab {version('cleanlab')}", statements, seconds)
