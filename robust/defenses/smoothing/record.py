"""The record of one run of `robust certify` as plain, validated data: what `certify.json` holds.

Radii, sigma and tolerance are l2 lengths in [0, 1] pixel units; shares are of all images, wrongly read ones included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from robust.summary import DataRecord, ModelRecord, Rate, Record


class Row(Record):
    """One image under one method."""

    image: int
    label: int
    prediction: int = Field(description="the class that the certificate is for")
    radius: float = Field(description="certified radius; 0: abstained")
    draws: int = Field(description="noisy copies passed forward, for choosing the class as well")
    hits: int = Field(description="estimating draws that gave the class")
    estimated: int = Field(description="estimating draws")

    @property
    def certified(self) -> float:
        """The radius where the certified class is the label, else 0: abstentions and wrong classes count as wrong."""
        return self.radius if self.prediction == self.label else 0.0


class Point(Record):
    radius: float
    certified: Rate = Field(description="images whose true class is certified at this radius or a larger one")


class MethodResult(Record):
    """What one method certified, and what it cost."""

    method: Literal["anytime", "cohen"]
    points: list[Point]
    abstained: Rate
    draws_mean: float = Field(description="draws per image, selection included")
    draws_median: float
    draws_most: int
    seconds: float
    rows: list[Row]


class AttackPoint(Record):
    radius: float
    standing: Rate = Field(description="images at which no attack of this size was confirmed: an upper bound")


class AttackResult(Record):
    """Attacks on the same smoothed classifier; 0 stands for the images themselves."""

    steps: int
    points: list[AttackPoint]
    seconds: float


class CertifySettings(Record):
    sigma: float
    alpha: float = Field(description="chance of a false certificate, for each image and method")
    radii: list[float]
    tolerance: float | None
    horizon: int = Field(description="most estimating draws of one image")
    precision: Literal["float32", "bfloat16"] = Field(description="of the classifier that is certified")
    seed: int
    limit: int | None
    device: str
    command: str


class CertifySummary(Record):
    """One run: the content of `certify.json`. The first method is the one that was asked for."""

    schema_version: Literal[1] = 1
    robust_version: str
    created: str = Field(description="UTC, ISO 8601")
    model: ModelRecord
    data: DataRecord
    settings: CertifySettings
    methods: list[MethodResult] = Field(min_length=1)
    attack: AttackResult | None
    warnings: list[str]
    machine: str
    versions: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> CertifySummary:
        """Read a record. Raises pydantic.ValidationError for a file of another shape."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
