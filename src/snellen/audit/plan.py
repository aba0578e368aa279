"""Plans: which probes, with which settings, on how many samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from snellen.errors import InvalidInput
from snellen.probe import Probe, get_probe

Setting = JsonValue


class PlannedProbe(BaseModel):
    """One probe of a plan. In YAML: `accuracy`, or `attack/pgd: {steps: 10, samples: 200}`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probe: str
    samples: int | None = Field(default=None, ge=1)
    settings: dict[str, Setting] = {}

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, given: object) -> object:
        if isinstance(given, str):
            return {"probe": given}
        if isinstance(given, dict) and "probe" not in given and len(given) == 1:
            ((name, settings),) = given.items()
            settings = dict(settings or {})
            return {"probe": name, "samples": settings.pop("samples", None), "settings": settings}
        return given

    def build(self) -> Probe:
        """The probe with its settings checked."""
        return build_probe(self.probe, self.settings)


class Plan(BaseModel):
    """What an audit does.

    seed: every random stream of the run derives from it. shard_size: samples a job, None to follow the data's size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    seed: int = 0
    shard_size: int | None = Field(default=None, ge=1)
    probes: tuple[PlannedProbe, ...] = Field(min_length=1)

    def to_yaml(self) -> str:
        stored = self.model_dump(mode="json", exclude={"probes"}, exclude_none=True)
        stored["probes"] = [
            {entry.probe: {**entry.settings, **({"samples": entry.samples} if entry.samples else {})}}
            for entry in self.probes
        ]
        return yaml.safe_dump(stored, sort_keys=False)


def build_probe(name: str, settings: Mapping[str, Setting]) -> Probe:
    """A probe by name with settings from YAML or the command line, converted to the fields' types."""
    kind = get_probe(name)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # every probe is a dataclass
    for key in settings:
        if key not in known:
            raise InvalidInput(f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}")
    try:
        return TypeAdapter(kind).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{name}: {where + ': ' if where else ''}{first['msg']}, got {first['input']!r}") from error


def settings_of(probe: Probe) -> dict[str, object]:
    """The probe's settings as plain values, defaults included; part of a job's key."""
    return {field.name: _plain(getattr(probe, field.name)) for field in dataclasses.fields(probe)}  # type: ignore[arg-type]


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def load_plan(name: str) -> Plan:
    """A preset by name, or a YAML file."""
    if name in PRESETS:
        return preset(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InvalidInput(f"plan {name!r} is neither a preset ({', '.join(PRESETS)}) nor a YAML file")
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Plan.model_validate(stored)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput(f"plan {path.name} is not readable YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InvalidInput(f"plan {path.name}: {where}: {first['msg']}") from error


def preset(name: str) -> Plan:
    """The built-in plan of that name, without the probes that are not installed."""
    return Plan.model_validate({"name": name, "probes": list(PRESETS[name])})


_TABLES: Sequence[object] = ("predictions", "accuracy", "calibration", "subgroup", "uncertainty/conformal")

_FAULTS: Sequence[object] = (
    "discovery/slices",
    "discovery/label-errors",
    "discovery/duplicates",
    {"discovery/preprocessing": {"samples": 300}},
    "discovery/shortcuts",
    {"discovery/block-reliance": {"most": 600}},
    {"discovery/triggers": {"samples": 400}},
    "discovery/confounders",
    "discovery/robustness-index",
)

# Sized for 1,200 images of 32 px and a small CNN on two cores: about a minute, the same, under ten minutes, an hour.
PRESETS: dict[str, Sequence[object]] = {
    "quick": (
        *_TABLES,
        "discovery/label-errors",
        "discovery/duplicates",
        {"shift/corruptions": {"severities": [1, 3, 5], "samples": 700}},
        {"shift/translations": {"samples": 700}},
        {"attack/pgd": {"steps": 10, "samples": 400}},
        {"certify/smoothing": {"sigma": 0.12, "n": 200, "samples": 200}},
        {"explain/cam": {"samples": 48}},
        {"explain/gradients": {"samples": 24}},
    ),
    "discover": (*_TABLES, *_FAULTS, {"shift/translations": {"samples": 700}}),
    "standard": (
        *_TABLES,
        *_FAULTS,
        {"shift/corruptions": {"samples": 500}},
        "shift/failure-points",
        {"shift/translations": {"samples": 1000}},
        {"shift/low-resolution": {"samples": 500}},
        {"shift/patch-replacement": {"shares": [0.1, 0.2, 0.3, 0.4, 0.5], "samples": 300}},
        {"shift/worst-combination": {"budget": 4000}},
        {"attack/pgd": {"samples": 500}},
        {"attack/apgd": {"samples": 200}},
        {"certify/smoothing": {"n": 1000, "samples": 100}},
        {"explain/cam": {"samples": 200}},
        {"explain/gradients": {"samples": 100}},
    ),
    "full": (
        *_TABLES,
        *_FAULTS,
        "discovery/shape-bias",
        "shift/corruptions",
        "shift/failure-points",
        "shift/translations",
        "shift/crop-selection",
        "shift/low-resolution",
        "shift/random-fields",
        {"shift/obfuscations": {"samples": 500}},
        {"shift/patch-perturbation": {"samples": 300}},
        "shift/patch-replacement",
        "shift/attribute-edits",
        {"shift/worst-combination": {"budget": 20000}},
        {"shift/adversarial-patch": {"samples": 100}},
        "attack/pgd",
        {"attack/pgd": {"norm": "l2", "eps": [0.125, 0.25, 0.5, 1.0]}},
        {"attack/apgd": {"samples": 500}},
        {"certify/smoothing": {"n": 10000, "samples": 200}},
        {"explain/cam": {"samples": 500}},
        {"explain/gradients": {"samples": 500}},
    ),
}
