"""A section for a model card: the Hugging Face `model-index` block, and the gravest findings and limits in prose."""

from __future__ import annotations

import re

from snellen.audit.measures import Measure, MeasuredRun
from snellen.audit.stored_run import StoredRun
from snellen.errors import InvalidInput
from snellen.report.page import interval, number
from snellen.report.verdicts import escape_markdown, fenced

MOST_FINDINGS = 10


def model_card(run: StoredRun) -> str:
    """Markdown with YAML front matter, as huggingface_hub reads and writes it."""
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError as error:
        raise InvalidInput("--to model-card needs the package huggingface_hub: pip install huggingface_hub") from error
    manifest = run.manifest
    model, data = _last_part(manifest.model.name), _last_part(manifest.data.name)
    shown = headline_measures(run)
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=_dataset_type(manifest.data.name),
            dataset_name=data,
            dataset_revision=manifest.data.fingerprint,
            metric_type=measure.metric,
            metric_name=measure.spoken,
            metric_value=round(measure.value, 6),
            metric_args=_arguments(measure),
        )
        for measure in shown
        if measure.value is not None
    ]
    front = ModelCardData(model_name=model, tags=["image-classification", "snellen"], eval_results=results or None)
    return f"---\n{front.to_yaml()}\n---\n\n{_prose(run, shown, model, data)}"


def headline_measures(run: StoredRun) -> list[Measure]:
    """What stands in the card and in tracked metrics: no groups, and of many shifts the worst condition only."""
    measures = [measure for measure in MeasuredRun(run).measures if measure.count is not None or not measure.where]
    kept = [m for m in measures if m.metric != "shift_accuracy" and not _is_group(m)]
    shifted = [m for m in measures if m.metric == "shift_accuracy" and m.value is not None]
    return [*kept, *([min(shifted, key=lambda m: m.value or 0.0)] if shifted else [])]


def _is_group(measure: Measure) -> bool:
    return measure.metric == "accuracy" and bool(measure.where)


def _prose(run: StoredRun, shown: list[Measure], model: str, data: str) -> str:
    manifest = run.manifest
    lines = [
        "## Examination",
        "",
        f"{escape_markdown(model)} was examined on {manifest.data.samples:,} samples of {escape_markdown(data)} with"
        f" snellen {escape_markdown(manifest.versions.get('snellen', ''))} (plan {escape_markdown(manifest.plan.name)},"
        f" seed {manifest.plan.seed}, {escape_markdown(manifest.model.access)} access).",
        "",
        "| measure | value | 95 % interval | n |",
        "|---|---|---|---|",
        *(
            f"| {escape_markdown(m.spoken)} | {number(m.value)} | {interval(m.interval)} | {number(m.n)} |"
            for m in shown
        ),
        "",
        "### Gravest findings",
        "",
    ]
    grave = [finding for finding in run.findings if finding.severity != "info"]
    for finding in grave[:MOST_FINDINGS]:
        ci = f" (95 % interval {interval(finding.interval)}, n = {number(finding.n)})" if finding.interval else ""
        lines.append(f"- **{finding.severity}**: {escape_markdown(finding.title)}{ci}")
    if len(grave) > MOST_FINDINGS:
        lines.append(f"- and {len(grave) - MOST_FINDINGS} more of severity low or above.")
    if not grave:
        lines.append("Nothing of severity low or more was found by the probes of this plan.")
    else:
        lines += ["", "The gravest is repeated by:", "", fenced(grave[0].repeat)]
    return "\n".join([*lines, "", "### Limits", "", *_limits(run)]) + "\n"


def _limits(run: StoredRun) -> list[str]:
    manifest = run.manifest
    lines = [
        "- What is not reported was not shown to be absent: only the probes named here ran, on these samples"
        f" ({', '.join(escape_markdown(probe) for probe in run.tables)}).",
        "- The figures hold for data like these; accuracy under an attack is an upper bound, a stronger attack can only"
        " lower it.",
    ]
    if manifest.data.quarantined:
        lines.append(f"- {manifest.data.quarantined:,} samples could not be read and were not used.")
    lines += [
        f"- Left out: {escape_markdown(item.probe)}, {escape_markdown(item.reason)}." for item in manifest.left_out
    ]
    lines += [
        f"- Failed: {escape_markdown(item.probe)}, {escape_markdown(item.error)}." for item in manifest.failed_jobs
    ]
    if manifest.status != "finished":
        why = manifest.stopped or manifest.status
        lines.append(f"- The examination is not whole: {escape_markdown(why)}.")
    return lines + [f"- {escape_markdown(warning)}" for warning in manifest.warnings]


def _arguments(measure: Measure) -> dict[str, object]:
    arguments: dict[str, object] = {**measure.where, "n": measure.n}
    if measure.interval is not None:
        arguments["confidence_interval_95"] = [round(bound, 6) for bound in measure.interval]
    return arguments


def _dataset_type(name: str) -> str:
    """The id on the Hub of `hf:NAME:split`, else a name made of letters, digits and hyphens."""
    if name.startswith("hf:"):
        return name.removeprefix("hf:").split(":")[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", _last_part(name)).strip("-").lower() or "images"


def _last_part(name: str) -> str:
    """Without the folders of a path: a card is published, and where a file lay is nobody's business."""
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or name
