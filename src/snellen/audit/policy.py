"""What a release has to keep: conditions on a run, in YAML.

conditions:
  - metric: robust_accuracy
    where: {eps: 2/255}
    at_least: 0.4
  - findings: {severity_at_least: high}
    at_most: 0
  - metric: accuracy
    no_worse_than_baseline: {margin: 0.01}
  - metric: accuracy
    no_group_worse_than_baseline: {margin: 0.02}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from snellen.audit.findings import Severity
from snellen.audit.measures import number
from snellen.errors import InvalidInput
from snellen.probe import Kind

_IDENTITY = re.compile(r"[0-9a-f]{12}")
_CHECKS = ("at_least", "at_most", "no_worse_than_baseline", "no_group_worse_than_baseline")


def _fraction(given: object) -> object:
    return given if number(given) is None else number(given)


Number = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
"""A number, or a fraction as text: 2/255."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Margin(_Strict):
    """How much worse may still be called no worse, in the metric's own units."""

    margin: Number = Field(ge=0, le=1)


class _Condition(_Strict):
    """name: what reports call it. why: a reason for those who meet the failure. undecided: what too few data mean."""

    name: str | None = None
    why: str | None = None
    undecided: Literal["pass", "fail"] = "fail"


class MetricCondition(_Condition):
    """A figure of the run against a limit or against a baseline. confidence: of the one-sided bound that decides."""

    metric: str
    probe: str | None = None
    where: dict[str, str] = {}
    at_least: Number | None = None
    at_most: Number | None = None
    no_worse_than_baseline: Margin | None = None
    no_group_worse_than_baseline: Margin | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _one_check(self) -> MetricCondition:
        if sum(getattr(self, check) is not None for check in _CHECKS) != 1:
            raise ValueError(f"a condition on a metric needs exactly one of {', '.join(_CHECKS)}")
        return self

    @property
    def needs_baseline(self) -> bool:
        return self.at_least is None and self.at_most is None


class FindingFilter(_Strict):
    severity_at_least: Severity


class FindingsCondition(_Condition):
    """At most so many findings of a severity; `except` names ids or kinds that do not count."""

    findings: FindingFilter
    at_most: int = Field(default=0, ge=0)
    excepted: tuple[str, ...] = Field(default=(), alias="except")

    @model_validator(mode="after")
    def _known_exceptions(self) -> FindingsCondition:
        for item in self.excepted:
            if item not in get_args(Kind) and not _IDENTITY.fullmatch(item):
                kinds = ", ".join(get_args(Kind))
                raise ValueError(f"except: {item!r} is neither a finding's id (12 hex digits) nor a kind ({kinds})")
        return self

    @property
    def needs_baseline(self) -> bool:
        return False


def _which(given: object) -> str:
    about_findings = isinstance(given, FindingsCondition) or (isinstance(given, dict) and "findings" in given)
    return "about findings" if about_findings else "about a metric"


Condition = Annotated[
    Annotated[MetricCondition, Tag("about a metric")] | Annotated[FindingsCondition, Tag("about findings")],
    Discriminator(_which),
]


class Policy(_Strict):
    conditions: tuple[Condition, ...] = Field(min_length=1)


def load_policy(path: Path) -> Policy:
    """A policy from YAML; an error names the line and the key."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.BaseLoader)
        _refuse_repeated_keys(tree, path.name)
        # Every scalar stays text until its field is known: an id of twelve digits is no number, "no" may be a class.
        return Policy.model_validate(yaml.load(text, Loader=yaml.BaseLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"policy {path.name!r} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"policy {path.name} is not readable YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise InvalidInput(f"policy {path.name}{_first_error(error, tree)}") from error


def _first_error(error: ValidationError, tree: yaml.Node | None) -> str:
    first = error.errors(include_url=False)[0]
    keys = [part for part in first["loc"] if not str(part).startswith("about ")]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        kind = FindingsCondition if "about findings" in first["loc"] else MetricCondition
        known = kind.model_fields if len(keys) == 3 else Policy.model_fields if len(keys) == 1 else {}
        names = ", ".join(field.alias or name for name, field in known.items())
        message = f"there is no such key{f'; known are {names}' if names else ''}"
    given = first["input"]
    came = f", got {given!r}" if isinstance(given, (str, int, float)) and first["type"] != "extra_forbidden" else ""
    return f", line {_line(tree, keys)}: {'.'.join(map(str, keys)) or 'the file'}: {message}{came}"


def _line(node: yaml.Node | None, keys: Sequence[str | int]) -> int:
    """The line, from 1, of the deepest part of `keys` that the file has."""
    line = 1 if node is None else node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == str(key)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line


def _refuse_repeated_keys(node: yaml.Node | None, name: str) -> None:
    """YAML keeps the last of two equal keys without a word, and a limit would silently not hold."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, yaml.MappingNode):
            keys = [key.value for key, _ in current.value if isinstance(key, yaml.ScalarNode)]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    line = current.value[index][0].start_mark.line + 1
                    raise InvalidInput(f"policy {name}, line {line}: the key {key!r} is there twice")
            waiting += [value for _, value in current.value]
        elif isinstance(current, yaml.SequenceNode):
            waiting += current.value
