"""The commands and their options; the work is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snellen import __version__

app = typer.Typer(
    name="snellen",
    help="An eye examination for vision models. Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="demo, timm:NAME[@weights], file.pt2, file.onnx, hf:ID, clip:…, http(s)://…, py:…"
    ),
]
DataName = Annotated[
    str, typer.Argument(metavar="DATA", help="demo, a folder, a table, a .zip, COCO .json, hf:…, wds:…; also s3://")
]
Classes = Annotated[Path | None, typer.Option(help="File with the model's class names, one a line in output order.")]
InputSize = Annotated[str | None, typer.Option(help="Model input in pixels, 224 or 224x320 (height x width).")]
Mean = Annotated[str | None, typer.Option(help="Channel means on [0, 1], as 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Channel deviations on [0, 1], as 0.229,0.224,0.225.")]
Architecture = Annotated[str | None, typer.Option(help="Network for a state dict: timm:NAME, torchvision:NAME, py:…")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
AccessLevel = Annotated[
    str | None, typer.Option("--access", help="Use less than the model grants: labels, scores, features, gradients.")
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="LIMITS", help="queries=20000,minutes=30: most images forward and backward, and most time."),
]
Template = Annotated[str | None, typer.Option(help="Sentence around a class name for clip: models, with one {}.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile.")]
Dtype = Annotated[str, typer.Option(help="Arithmetic of the network: float32 or bf16.")]
RemoteOptions = Annotated[
    str | None,
    typer.Option("--remote", metavar="SETTINGS", help="For http models: concurrency=8,timeout=30,retries=6,rate=20."),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a pass; else by their size, or the server's wish.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random stream; the plan's, else 0.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Look at this many samples, classes in balance.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the metadata that holds the label.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"snellen {__version__}")
        raise typer.Exit


@app.command()
def audit(
    model: ModelName,
    data: DataName,
    preset: Annotated[str | None, typer.Option(help="quick, discover, standard or full (default quick).")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan of your own, in YAML.")] = None,
    out: Annotated[str | None, typer.Option(help="Run directory, local or any fsspec address.")] = None,
    classes: Classes = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    architecture: Architecture = None,
    device: Device = "cpu",
    access: AccessLevel = None,
    budget: Budget = None,
    seed: Seed = None,
    label_column: LabelColumn = "label",
    template: Template = None,
    compile_network: Compile = False,
    dtype: Dtype = "float32",
    remote: RemoteOptions = None,
    batch_size: BatchSize = None,
    executor: Annotated[str, typer.Option(help="local, ray, or ray://HOST:PORT of a running cluster.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray actors, each with the model; else one a device.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show jobs, passes and estimated time; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine MODEL on DATA and write a run directory with findings and a report. The same command resumes."""
    from snellen.cli.audit import run_audit
    from snellen.cli.inputs import ModelFlags

    flags = ModelFlags(
        *(classes, input_size, mean, std, architecture, device, access, budget, label_column),
        *(template, compile_network, dtype, remote, batch_size),
    )
    raise typer.Exit(run_audit(model, data, flags, preset, plan, out, seed, dry_run, as_json, executor, workers))


@app.command()
def run(
    probe: Annotated[str, typer.Argument(metavar="PROBE", help="One of `snellen methods`, as attack/pgd.")],
    model: ModelName,
    data: DataName,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the probe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all rows to this .parquet or .csv file.")] = None,
    samples: Samples = None,
    classes: Classes = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    architecture: Architecture = None,
    device: Device = "cpu",
    access: AccessLevel = None,
    budget: Budget = None,
    seed: Seed = None,
    label_column: LabelColumn = "label",
    template: Template = None,
    compile_network: Compile = False,
    dtype: Dtype = "float32",
    remote: RemoteOptions = None,
    batch_size: BatchSize = None,
    show: Annotated[
        bool, typer.Option("--show", help="Draw what the probe does to images (--samples, default 1) and run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one PROBE and print its rows and findings."""
    from snellen.cli.inputs import ModelFlags
    from snellen.cli.run import run_probe

    flags = ModelFlags(
        *(classes, input_size, mean, std, architecture, device, access, budget, label_column),
        *(template, compile_network, dtype, remote, batch_size),
    )
    raise typer.Exit(run_probe(probe, model, data, settings or [], flags, out, samples, seed, as_json, show))


@app.command()
def report(
    run_directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory of `snellen audit`.")],
    model: Annotated[str | None, typer.Option(help="Model, when it moved since the run.")] = None,
    data: Annotated[str | None, typer.Option(help="Data, when they moved since the run.")] = None,
) -> None:
    """Write RUN/report.html again from what is stored."""
    from snellen.cli.report import rebuild_report

    raise typer.Exit(rebuild_report(run_directory, model, data))


@app.command()
def methods(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="Only this family.")] = None,
    as_json: Json = False,
) -> None:
    """List every method: name, access, scope, paper, replication status."""
    from snellen.cli.methods import list_methods

    raise typer.Exit(list_methods(family, as_json))


@app.command()
def replicate(
    slugs: Annotated[
        list[str] | None, typer.Argument(metavar="[SLUG]...", help="Cards; all when none is named.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the experiment.")] = 0,
    as_json: Json = False,
    record: Annotated[
        Path | None, typer.Option(help="Also write the outcome into this JSON file (replications/results.json).")
    ] = None,
) -> None:
    """Repeat papers' claims in small. Exit status 0: all held, 1: one did not, 2: an error."""
    from snellen.cli.replicate import run_replications

    raise typer.Exit(run_replications(slugs or [], seed, as_json, record))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, devices and optional parts."""
    from snellen.cli.doctor import check_installation

    raise typer.Exit(check_installation(as_json))


@app.command()
def compare(
    before: Annotated[str, typer.Argument(metavar="RUN_A", help="The earlier run directory.")],
    after: Annotated[str, typer.Argument(metavar="RUN_B", help="The later run directory.")],
    out: Annotated[Path | None, typer.Option(help="Also write both side by side to this .html page.")] = None,
    as_json: Json = False,
) -> None:
    """What changed between two runs: statements, and paired tests on the samples both examined."""
    from snellen.cli.compare import run_compare

    raise typer.Exit(run_compare(before, after, out, as_json))


@app.command()
def gate(
    run_directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory of `snellen audit`.")],
    policy: Annotated[Path, typer.Option(help="The conditions to keep, in YAML.")],
    baseline: Annotated[str | None, typer.Option(help="Run directory to compare with.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write a Markdown summary to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Hold RUN against a policy. Exit status 0: kept, 1: not kept, 2: bad input."""
    from snellen.cli.gate import run_gate

    raise typer.Exit(run_gate(run_directory, policy, baseline, junit, summary, as_json))


@app.command()
def export(
    run_directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory of `snellen audit`.")],
    to: Annotated[str, typer.Option(help="mlflow, model-card or csv.")],
    out: Annotated[str | None, typer.Option(help="Where to: a folder, a file, or MLflow's tracking address.")] = None,
) -> None:
    """Hand RUN to other tools: MLflow, a model card, or CSV files."""
    from snellen.cli.export import export_run

    raise typer.Exit(export_run(run_directory, to, out))
