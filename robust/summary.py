"""The record of one audit as plain, validated data: what `audit.json` holds.

The JSON Schema of :class:`AuditSummary` is the file's documentation for other programs; `robust schema` prints it.
Numbers are unitless rates in [0, 1] unless a field says otherwise; eps and distances are in [0, 1] pixel units.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from robust.places import write_text

SCHEMA_VERSION = 1

Verdict = Literal["sound", "suspect", "inconclusive"]
Norm = Literal["linf", "l2", "l1", "l0", "patch"]
Status = Literal["done", "failed", "skipped", "unfinished"]


class Record(BaseModel):
    """Plain, validated data that does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, path: Path) -> None:
        """Write as JSON, in one step: a reader never sees half a file."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


class Rate(Record):
    """A share of images with its 95 % Clopper-Pearson interval."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    numerator: int = Field(ge=0)
    n: int = Field(ge=1, description="the denominator: all audited images, wrongly classified ones included")


class ThreatRecord(Record):
    """The threat model: what lies within eps of each image, inside the box [0, 1]; for a patch, eps is a share of the
    image's area."""

    norm: Norm
    eps: float = Field(ge=0)
    text: str = Field(description="as written on the command line, e.g. linf:8/255; unique within one audit")


class CheckRecord(Record):
    """One check of the evidence. ``passed`` is null where the check could not be run."""

    name: str
    title: str
    passed: bool | None
    detail: str = Field(description="what was measured, with its figures")
    meaning: str = Field(description="why it matters and what to do if it fails")
    weight: Literal["evidence", "advice"] = Field(
        description="a failed check of evidence makes the verdict suspect; advice only informs"
    )


class QueryRecord(Record):
    """What a query attack asked about the images it was tried on; a query is a forward pass of one image."""

    median: float = Field(description="queries an image cost, the clean pass included; median over images tried")
    most: int = Field(description="the most queries that any one image cost")
    broken_at: list[int] = Field(description="for each image it broke, the number of the query that did; ascending")


class AttackRecord(Record):
    """One attack of the audit: on how many images it ran, what it broke, and what it cost."""

    name: str
    knowledge: Literal["none", "white-box", "score", "decision"]
    tried: int
    broken: int = Field(description="images this attack was the first to break, each re-verified in float32")
    rejected: int = Field(description="claims of success that re-verification did not confirm")
    forward: int = Field(description="images passed forward, all together")
    backward: int = Field(description="images passed backward, all together")
    seconds: float
    status: Status
    detail: str = ""
    queries: QueryRecord | None = Field(default=None, description="of attacks that only ask; null for all others")


class CurvePoint(Record):
    eps: float
    robust_accuracy: float
    low: float
    high: float


class Cost(Record):
    forward_per_image: float
    backward_per_image: float
    seconds: float


class ScoreRecord(Record):
    """Robustness score from 0 to 100 with its 95 % interval; see :mod:`robust.reports.score`."""

    value: float = Field(ge=0, le=100)
    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)
    definition: str
    trusted: bool = Field(
        description="whether the verdict is sound; a score that is not trusted is only an upper bound"
    )


class MeanRate(Record):
    """The mean over images of a share of draws, with its conservative 95 % Clopper-Pearson interval over images."""

    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    n: int = Field(ge=1)


class RandomizedRecord(Record):
    """What was measured of a model that draws random numbers; see docs/verdict.md."""

    draws: int = Field(description="fresh draws per image behind each rate")
    votes: int = Field(description="fresh draws whose majority says whether an image counts as broken")
    attack_draws: int = Field(description="draws over which attacks average each gradient pass")
    clean_accuracy: MeanRate = Field(description="expected accuracy unattacked")
    robust_accuracy: MeanRate = Field(description="expected accuracy on each image's worst adversarial image")
    mostly_wrong: int = Field(description="images misread in most draws, by the 95 % interval of their own rate")
    mostly_right: int = Field(description="images read right in most draws, by the same interval")
    undecided: int


class ThreatResult(Record):
    """What the audit found for one threat model."""

    threat: ThreatRecord
    robust_accuracy: Rate
    randomized: RandomizedRecord | None = Field(
        default=None, description="for models that draw random numbers: accuracies as rates over fresh draws"
    )
    certified_accuracy: Rate | None = None
    verdict: Verdict
    reasons: list[str] = Field(description="one sentence each: what led to the verdict")
    checks: list[CheckRecord]
    cost: Cost
    attacks: list[AttackRecord]
    curve: list[CurvePoint]
    median_distance: float | None = Field(
        description="median over correctly classified images of the smallest perturbation found; null where over half "
        "were never broken"
    )
    eight_bit: Rate | None = Field(description="share of the successes that survive rounding to 8-bit color")
    score: ScoreRecord


class CellRecord(Record):
    """Accuracy under one corruption at one severity."""

    corruption: str
    severity: int = Field(ge=1, le=5)
    accuracy: Rate
    baseline: Rate | None = Field(default=None, description="of the baseline model on the same corrupted images")


class CorruptionRecord(Record):
    """One corruption over all its severities."""

    name: str
    family: Literal["noise", "blur", "weather", "digital"]
    accuracy: MeanRate = Field(description="mean over severities")
    retention: float | None = Field(description="accuracy as a share of clean accuracy; null where that is 0")
    error: float | None = Field(
        description="corruption error: the sum of the error rates as a share of the baseline's; null without a baseline"
    )


class BaselineRecord(Record):
    """The model that corruption errors are relative to."""

    name: str
    sha256: str
    clean_accuracy: Rate


class CorruptionResult(Record):
    """Accuracy on corrupted images: the fifteen corruptions of Hendrycks and Dietterich (ICLR 2019), made here."""

    severities: list[int]
    cells: list[CellRecord] = Field(description="one for each corruption and severity that was finished")
    corruptions: list[CorruptionRecord] = Field(description="those of which all severities were finished")
    mean_accuracy: MeanRate | None = Field(description="mean over all cells; null where some were not finished")
    always_right: Rate | None = Field(description="images right in every cell")
    retention: float | None = Field(description="mean accuracy as a share of clean accuracy")
    worst: CellRecord | None = Field(description="the cell with the lowest accuracy")
    mean_error: float | None = Field(description="mCE: the mean of the corruption errors; 1 is the baseline's")
    relative_error: float | None = Field(
        description="relative mCE: the same with each model's clean error taken off, null where the baseline loses "
        "nothing"
    )
    baseline: BaselineRecord | None
    verdict: Verdict
    reasons: list[str]
    seconds: float


class ModelRecord(Record):
    name: str
    sha256: str = Field(description="of the weights and buffers, or of the name where the model is a plain callable")
    parameters: int
    classes: int


class DataRecord(Record):
    name: str
    n: int
    available: int = Field(description="images in the data set before --limit")
    sha256: str = Field(description="of the audited pixels and labels, in order")
    shape: tuple[int, int, int] = Field(description="(C, H, W)")
    class_names: list[str]


class Settings(Record):
    seed: int
    limit: int | None
    device: str
    batch_size: int
    budget_seconds: float | None
    attacks: list[str]
    standard_attacks: bool = Field(description="whether the list is the default one or includes all of it")
    lane: str = Field(default="plain", description="the copy of the model that gradient attacks searched with")
    lane_detail: str = Field(default="", description="why that copy")
    behind: str | None = Field(default=None, description="the defense that the model was put behind, as in --behind")
    command: str = Field(description="a command that reproduces the audit")


class AuditSummary(Record):
    """One audit: the content of `audit.json`."""

    schema_version: Literal[1] = 1
    robust_version: str
    created: str = Field(description="UTC, ISO 8601")
    model: ModelRecord
    data: DataRecord
    settings: Settings
    clean_accuracy: Rate
    verdict: Verdict = Field(description="the worst over the threat models and the corruptions")
    threats: list[ThreatResult] = Field(
        description="norm balls and patches; empty where only corruptions were asked for"
    )
    corruptions: CorruptionResult | None = None
    score: ScoreRecord
    warnings: list[str]
    seconds: float
    machine: str
    versions: dict[str, str]

    @model_validator(mode="after")
    def _asked_for_something(self) -> AuditSummary:
        if not self.threats and self.corruptions is None:
            raise ValueError("an audit has at least one threat model")
        return self

    @classmethod
    def read(cls, path: Path) -> AuditSummary:
        """Read a summary. Raises pydantic.ValidationError for a file of another shape."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `audit.json`."""
    return AuditSummary.model_json_schema()


def json_schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"
