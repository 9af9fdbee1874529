"""Patches and stickers: where they lie, how they are seen, how they are made and how well they work."""

from robust.attacks.patch.layout import choose_layout, layouts
from robust.attacks.patch.measure import (
    PatchMeasurement,
    Stratum,
    Success,
    control,
    measure_patch,
    placement_map,
)
from robust.attacks.patch.optimize import PatchAttack, PatchResult, train_patch
from robust.attacks.patch.placing import in_pixels, light_on, paste, whole
from robust.attacks.patch.printing import (
    default_palette,
    load_palette,
    non_printability,
    printed,
    total_variation,
)
from robust.attacks.patch.regions import (
    Anywhere,
    OnSign,
    Placement,
    Region,
    circle,
    from_file,
    octagon,
    rectangle,
    stickers,
)
from robust.attacks.patch.transforms import PRESETS, Conditions, Drawn, apply

__all__ = [
    "PRESETS",
    "Anywhere",
    "Conditions",
    "Drawn",
    "OnSign",
    "PatchAttack",
    "PatchMeasurement",
    "PatchResult",
    "Placement",
    "Region",
    "Stratum",
    "Success",
    "apply",
    "choose_layout",
    "circle",
    "control",
    "default_palette",
    "from_file",
    "in_pixels",
    "layouts",
    "light_on",
    "load_palette",
    "measure_patch",
    "non_printability",
    "octagon",
    "paste",
    "placement_map",
    "printed",
    "rectangle",
    "stickers",
    "total_variation",
    "train_patch",
    "whole",
]
