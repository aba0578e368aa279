"""Audit: a plan becomes jobs, jobs become stored rows, rows become statements."""

from snellen.audit.engine import Examination
from snellen.audit.findings import Statement, severity
from snellen.audit.plan import Plan, load_plan, preset
from snellen.audit.progress import Progress, Silent
from snellen.audit.record import Audit

__all__ = ["Audit", "Examination", "Plan", "Progress", "Silent", "Statement", "load_plan", "preset", "severity"]
