"""The record of one run of `robust certify --patch` as plain, validated data: what its `certify.json` holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robust.reports import formats
from robust.summary import DataRecord, ModelRecord, Rate, Record


class PatchRow(Record):
    """One image."""

    image: int
    label: int
    plain: int = Field(description="class by the bare model")
    defended: int = Field(description="class by the model behind its defense")
    certified: bool = Field(description="no patch of this size changes the defended class")
    passes: int = Field(description="views passed forward for the certificate")
    fell: bool | None = Field(description="whether an attack turned the defended class from the label; null: not tried")

    @property
    def counts(self) -> bool:
        """Certified and right."""
        return self.certified and self.defended == self.label


class PatchSettings(Record):
    patch: str = Field(description="as it was asked for: a share of the area, or pixels")
    height: int = Field(description="of the patch, in pixels of the images as the model sees them")
    width: int
    behind: str = Field(description="the defense and its settings")
    seed: int
    limit: int | None
    device: str
    command: str


class PatchSummary(Record):
    """One run. Rates are of all images; a wrong class counts as not certified."""

    schema_version: Literal[1] = 1
    robust_version: str
    created: str = Field(description="UTC, ISO 8601")
    model: ModelRecord
    data: DataRecord
    settings: PatchSettings
    plain: Rate = Field(description="right by the bare model, unattacked")
    defended: Rate = Field(description="right behind the defense, unattacked")
    attacked: Rate | None = Field(description="right behind the defense, and no attack changed that: an upper bound")
    certified: Rate = Field(description="right behind the defense under every patch: a lower bound")
    passes_mean: float
    seconds: float
    rows: list[PatchRow]
    machine: str
    versions: dict[str, str]

    def text(self) -> str:
        """The run in a few lines of plain text for a terminal."""
        settings = self.settings
        lines = [
            f"{formats.shorten(formats.one_line(self.model.name), 40)} behind {settings.behind}: one patch of "
            f"{settings.height}x{settings.width} pixels anywhere, {self.data.n:,} images",
            f"  right unattacked, bare      {formats.rate_text(self.plain)}",
            f"  right unattacked, defended  {formats.rate_text(self.defended)}",
        ]
        if self.attacked is not None:
            lines.append(f"  right after attacks         {formats.rate_text(self.attacked)}")
        lines.append(f"  certified                   {formats.rate_text(self.certified)}")
        return "\n".join([*lines, f"  {self.passes_mean:.0f} views an image, {formats.duration(self.seconds)}"])
