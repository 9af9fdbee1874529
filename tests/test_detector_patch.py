"""Patches against detectors: where objects come to lie, the optimum on a detector of known answers, the count."""

from __future__ import annotations

import pytest
import torch
from detectors import BLUE, BOX, RED, ColorDetector
from torch import Tensor

from robust.attacks.patch import Conditions, OnSign, PatchAttack, rectangle
from robust.detection import (
    Detection,
    DetectionGoal,
    attack_detector,
    drawn_detections,
    measure_detector,
    patched,
    seen,
    sheet,
)
from robust.errors import InputError
from robust.randomness import image_seeds

# As fine as the object's 16 x 16 pixels, so that every texel counts.
QUARTER = OnSign(rectangle(16, 16, 0.25))


def red_objects(n: int = 4) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) of red 0.8 and blue 0.2 where the color detector looks, each a little different."""
    images = torch.zeros(n, 3, 32, 32)
    images[:, 0], images[:, 2] = 0.8, 0.2
    images[:, 1] = torch.linspace(0, 0.5, n).view(n, 1, 1)
    return images, torch.tensor([BOX]).expand(n, 4)


def test_the_box_goes_where_the_object_goes() -> None:
    # A white octagon on black, off the middle; what is bright afterwards tells where its box must be.
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    x, y = (x - 28).abs(), (y - 36).abs()
    inside = (torch.maximum(x, y) < 20) & (x + y < 20 * 2**0.5)
    images = inside.float().expand(6, 3, 64, 64) * torch.linspace(0.9, 1, 6).view(6, 1, 1, 1)
    boxes = torch.tensor([[8.0, 16, 48, 56]]).expand(6, 4)
    conditions = Conditions(distance=(1, 3), yaw=(-30, 30), roll=(-15, 15), shift=(-0.1, 0.1))
    drawn = conditions.draw(image_seeds(images, 0))
    pictures, moved = seen(images, boxes, drawn)
    for picture, box in zip(pictures[:, 0], moved, strict=True):
        rows, columns = (picture > 0.5).any(1).nonzero(), (picture > 0.5).any(0).nonzero()
        found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).flatten()
        assert (found - box).abs().max() < 1.5
    same, still = seen(images, boxes, Conditions().draw(image_seeds(images, 0)))
    assert torch.equal(still, boxes)
    torch.testing.assert_close(same, images)


def test_a_patch_covers_its_share_of_the_box_and_nothing_else() -> None:
    images, boxes = red_objects()
    drawn = Conditions().draw(image_seeds(images, 0))
    changed = patched(images, boxes, torch.ones(3, 16, 16), QUARTER, drawn) - images
    assert changed[:, 1].gt(0.1).sum((1, 2)).tolist() == [64] * 4  # a quarter of 16 x 16
    assert changed[:, :, :12].abs().max() == 0


@pytest.mark.parametrize("target", [None, BLUE])
def test_the_patch_reaches_the_optimum_of_a_linear_detector(target: int | None) -> None:
    # The patch covers a quarter of the box: red can fall from 0.8 to 0.6, blue rise from 0.2 to 0.4.
    images, boxes = red_objects()
    goal = DetectionGoal(RED, target, threshold=0.61 if target is None else 0.39)
    attack = PatchAttack(steps=30, rate=0.1)
    result = attack_detector(ColorDetector(), images, boxes, goal, QUARTER, attack=attack)
    inside = result.patch[:, 4:12, 4:12]
    assert inside[0].max() < 0.02
    if target is not None:
        assert inside[2].min() > 0.98
    else:
        assert result.history[0] == 0
        assert result.history[-1] == 1


def test_measured_as_known_in_closed_form() -> None:
    images, boxes = red_objects()
    goal = DetectionGoal(RED, BLUE, threshold=0.35)
    blue = torch.ones(3, 16, 16) * torch.tensor([0.0, 0, 1]).view(3, 1, 1)
    measured = measure_detector(ColorDetector(), images, boxes, goal, blue, QUARTER, draws=2)
    assert measured.area == pytest.approx(0.25)
    clean, patch = measured.sights["clean"], measured.sights["patch"]
    # Red 0.6 is still seen beside blue 0.4: nothing is gone, nothing misread.
    assert (clean.recall.value, patch.recall.value, patch.recall.n) == (1, 1, 4)
    assert patch.gone is not None
    assert patch.misread is not None
    assert (patch.gone.value, patch.misread.value, clean.gone) == (0, 0, None)
    # Red 0.6 beside a threshold of 0.61: gone; grey leaves red at 0.725.
    goal = DetectionGoal(RED, threshold=0.61)
    measured = measure_detector(ColorDetector(), images, boxes, goal, blue, QUARTER, draws=2)
    patch, grey = measured.sights["patch"], measured.sights["grey"]
    assert patch.gone is not None
    assert grey.gone is not None
    assert (patch.gone.value, patch.recall.value, grey.gone.value) == (1, 0, 0)
    assert patch.misread is None
    # Only the threshold lost them: average precision looks at weak detections too.
    assert patch.average_precision.value == 1


def test_objects_that_are_not_found_untouched_do_not_count() -> None:
    images, boxes = red_objects()
    images[0, 0] = 0.1
    goal = DetectionGoal(RED, threshold=0.5)
    measured = measure_detector(ColorDetector(), images, boxes, goal, torch.zeros(3, 16, 16), QUARTER, draws=1)
    patch = measured.sights["patch"]
    assert measured.sights["clean"].recall.value == 0.75
    assert patch.gone is not None
    assert (patch.gone.value, patch.gone.n) == (0, 3)


def test_the_detector_is_never_given_all_images_of_a_large_set_at_once() -> None:
    images, boxes = red_objects(70)
    given: list[int] = []

    def watched(pictures: list[Tensor]) -> list[Detection]:
        given.append(len(pictures))
        return ColorDetector()(pictures)

    goal = DetectionGoal(RED, threshold=0.61)
    measured = measure_detector(watched, images, boxes, goal, torch.zeros(3, 16, 16), QUARTER, draws=1)
    assert max(given) <= 32
    assert measured.sights["patch"].recall.n == 70


def test_the_same_seed_gives_the_same_patch_and_a_killed_run_goes_on() -> None:
    images, boxes = red_objects()
    goal, attack = DetectionGoal(RED, threshold=0.7), PatchAttack(steps=12, batch=2)
    conditions = Conditions(brightness=(0.8, 1.2), noise=(0, 0.05))
    states = []
    arguments = (ColorDetector(), images, boxes, goal, QUARTER, conditions, attack)
    whole = attack_detector(*arguments, keep=states.append, keep_every=5)
    again = attack_detector(*arguments, state=states[0])
    assert torch.equal(whole.patch, again.patch)


def test_bad_input_is_named() -> None:
    images, boxes = red_objects()
    with pytest.raises(InputError, match="target 1 is the source's own class"):
        DetectionGoal(RED, RED)
    with pytest.raises(InputError, match=r"between 0 and 1, not 1\.5"):
        DetectionGoal(RED, threshold=1.5)
    with pytest.raises(InputError, match="boxes must have the shape"):
        attack_detector(ColorDetector(), images, boxes[:2], DetectionGoal(RED), QUARTER)
    with pytest.raises(InputError, match="divide 8-bit images by 255"):
        attack_detector(ColorDetector(), images * 255, boxes, DetectionGoal(RED), QUARTER)
    attack = PatchAttack(per_image=True)
    with pytest.raises(InputError, match="leave per_image off"):
        attack_detector(ColorDetector(), images, boxes, DetectionGoal(RED), QUARTER, attack=attack)


def test_a_sheet_shows_what_counts_in_its_colors() -> None:
    images, _ = red_objects(3)
    found = ColorDetector(0.1)(list(images))
    tiles = {
        "both": [drawn_detections(images[0], found[0], "abc", RED, BLUE, 0.1, side=64)],
        "one": [drawn_detections(images[0], found[0], "abc", RED, BLUE, 0.5, side=64)],
        "other": [drawn_detections(images[0], found[0], "a", 0, None, 0.5, side=64)],
    }
    left = [tile.getpixel((16, 40)) for (tile,) in tiles.values()]  # the box's left edge, at twice the size
    assert left == [(0, 224, 112), (0, 224, 112), (255, 210, 31)]
    page = sheet(tiles, across=1)
    assert page.size == (3 * 66, 22 + 66)
    assert page.getpixel((66 + 16, 22 + 40)) == (0, 224, 112)
