"""`robust patch` from the command line: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust.errors import InputError
from robust.patches.making import Patching, make_patch
from robust.patches.setup import SHAPES, class_of, flat_sign, gather, spot
from robust.progress import Silent

Command = Callable[..., tuple[int, str, str]]
_SMALL = ("--steps", "4", "--batch", "8", "--draws", "1", "--conditions", "mild", "--dpi", "30", "--layouts", "1")
_GOAL = ("--source", "stop", "--target", "speed limit 30")


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 of the demo's stop signs and 8 others."""
    from robust.demo.faces import CLASS_NAMES
    from robust.demo.signs import render

    stop = CLASS_NAMES.index("stop")
    labels = [stop] * 24 + [index for index in range(len(CLASS_NAMES)) if index != stop][:8]
    images = np.stack([render(label, 5, index) for index, label in enumerate(labels)])
    file = tmp_path_factory.mktemp("data") / "signs.npz"
    np.savez(file, images=images, labels=np.array(labels), class_names=np.array(CLASS_NAMES))
    return file


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs of a stop sign, drawn large."""
    from robust.demo.faces import face

    folder = tmp_path_factory.mktemp("photographs")
    for name, tone in (("1", 150), ("2", 90)):
        picture = Image.new("RGB", (128, 128), (tone, tone + 20, tone))
        sign = face("stop").resize((110, 110))
        picture.paste(sign, (9, 9), sign)
        picture.save(folder / f"{name}.png")
    return folder


def test_a_universal_patch_end_to_end(
    command: Command, signs: Path, photographs: Path, tmp_path: Path
) -> None:  # fmt: skip
    out = tmp_path / "patch"
    views = ("--photos", str(photographs), "--distances", "8,30,8", "--angles", "0,20")
    arguments = ("patch", "demo", str(signs), *_GOAL, *_SMALL, "--kind", "universal", *views, "--out", str(out))
    code, told, warned = command(*arguments)
    assert code == 0, warned
    assert "as speed limit 30" in told
    assert "give other images with --train-data" in warned
    record = json.loads((out / "patch.json").read_text())
    figures, photos = record["figures"], record["photographs"]
    assert (record["settings"]["made_on"], figures["images"]) == (12, 12)
    assert set(figures["controls"]) == {"noise", "grey", "sticker"}
    assert 0 <= figures["patch"]["targeted"]["low"] <= figures["patch"]["targeted"]["value"] <= 1
    assert photos["views"] == 2 * 2 * 2
    assert sum(cell["counted"] for cell in photos["cells"]) == photos["kinds"]["patch"]["views"]
    # A tenth of the area of an octagon 75 cm wide is a square of this side.
    side = 75 * np.sqrt(0.1 * float(flat_sign("octagon").mean()))
    assert record["print"]["pieces"][0]["width_cm"] == pytest.approx(side, rel=0.01)
    with Image.open(out / "patch.png") as png:
        assert png.width == pytest.approx(side / 2.54 * 30, abs=1)
    report = (out / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert report.count("data:image/gif") == 1
    for name in ("patch.pdf", "patch.npz", "contact-sheet.png", "approach.gif"):
        assert (out / name).stat().st_size > 0
    before = (out / "patch.npz").read_bytes()
    assert command(*arguments)[0] == 0  # goes on from its own state
    assert (out / "patch.npz").read_bytes() == before


def test_stickers_lie_on_the_sign_and_are_printed_one_by_one(signs: Path, tmp_path: Path) -> None:
    made = make_patch(
        "demo", str(signs), source="stop", kind="stickers", area=0.2, layouts=2, steps=3, draws=1, conditions="none",
        dpi=20, out=tmp_path,
    )  # fmt: skip
    assert made.record["target"] is None
    assert made.record["figures"]["patch"]["targeted"] is None
    assert len(made.record["print"]["pieces"]) == 2
    sign = flat_sign("octagon", 26)
    assert float(made.cover.mean() / sign.mean()) == pytest.approx(0.2, rel=0.02)
    assert float(made.cover[sign < 0.5].sum()) < 0.02 * float(made.cover.sum())


def test_a_patch_for_each_image(signs: Path, tmp_path: Path) -> None:
    made = make_patch(
        "demo", str(signs), source="stop", kind="per-image", steps=2, draws=1, limit=6, conditions="none",
        out=tmp_path,
    )  # fmt: skip
    assert made.patch.shape[0] == made.record["figures"]["images"] == 6
    assert made.record["print"] is None
    report = (tmp_path / "report.html").read_text()
    assert "made on that very image, in 1 new draw of the conditions each. Only views count of which" in report
    assert "held-out" not in report


class _Stopping(Silent):
    """Stops the run after so many steps, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_to_the_same_patch(signs: Path, tmp_path: Path) -> None:
    settings = {"source": "stop", "target": "yield", "steps": 30, "batch": 4, "draws": 1, "conditions": "mild",
                "kind": "universal"}  # fmt: skip
    whole = make_patch("demo", str(signs), **settings, dpi=20, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make_patch("demo", str(signs), **settings, dpi=20, out=tmp_path / "two", progress=_Stopping(25))
    assert {file.name for file in (tmp_path / "two").iterdir()} == {"patch-state.safetensors"}
    rest = make_patch("demo", str(signs), **settings, dpi=20, out=tmp_path / "two")
    assert torch.equal(rest.patch, whole.patch)
    costs = [made.record["cost"] for made in (whole, rest)]
    for way in ("forward", "backward"):  # 30 steps of 4 images, however often it was stopped
        assert [cost["made"][way] for cost in costs] == [120, 120]
    assert costs[0]["measured"] == costs[1]["measured"]
    with pytest.raises(InputError, match="made with other settings"):
        make_patch("demo", str(signs), **{**settings, "seed": 1}, out=tmp_path / "two")


def test_another_mask_in_the_same_file_makes_another_patch(signs: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "mask.png", tmp_path / "out"

    def made(box: tuple[int, int, int, int]) -> Patching:
        picture = Image.new("L", (32, 32))
        picture.paste(255, box)
        picture.save(file)
        return make_patch(
            "demo", str(signs), source="stop", mask=str(file), steps=2, draws=1, conditions="none", dpi=20, out=out
        )

    first = made((8, 8, 20, 14))
    assert first.cover.sum() == 12 * 6
    assert torch.equal(made((8, 8, 20, 14)).patch, first.patch)
    with pytest.raises(InputError, match="made with other settings"):
        made((8, 16, 20, 22))


def test_the_two_halves_have_no_image_in_common(signs: Path) -> None:
    sources, _ = gather(str(signs), None, "stop", kind="universal", limit=None, resize=None, seed=3)
    seen = {image.numpy().tobytes() for image in sources.train}
    assert len(sources.train) == len(sources.test) == 12
    assert not seen & {image.numpy().tobytes() for image in sources.test}


@pytest.mark.parametrize("apart", [False, True])
def test_images_on_both_sides_are_counted(apart: bool) -> None:
    """Two pictures, eight times each: whatever measures the patch made it as well."""
    pair = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    data = (np.concatenate([np.repeat(pair, 8, 0), pair]), np.array([0] * 16 + [1, 1]))
    sources, _ = gather(data, data if apart else None, "0", kind="universal", limit=None, resize=None, seed=0)
    assert (sources.train_name is not None) == apart
    count = len(sources.test)
    assert sources.remarks[-1].startswith(f"{count} of the {count} images that measure the patch also made it")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_universal_patch_stays_on_the_sign(shape: str) -> None:
    where = spot("universal", shape, 0.1, 0.8, 1, 1, (32, 32))
    sign = flat_sign(shape).numpy()
    corners = where.region.draw(torch.arange(200)).corners.numpy()
    places = (where.on_sign(corners) * 64).clip(0, 63).astype(int)
    assert (sign[places[..., 1], places[..., 0]] > 0.4).all()


def test_classes_are_found_by_name_in_any_case_and_by_number() -> None:
    names = ("stop", "Speed limit 30", "yield")
    assert [class_of("--target", text, names, 4) for text in ("STOP", " speed limit 30", "2", "3")] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="--target: unknown class 'speed limt 30': did you mean Speed limit 30"):
        class_of("--target", "speed limt 30", names, 4)
    with pytest.raises(InputError, match="unknown class '4'"):
        class_of("--target", "4", names, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "stopp"), "unknown class 'stopp': did you mean stop"),
        (("--source", "stop", "--target", "speed limit 31"), "--target: unknown class 'speed limit 31': did you mean"),
        (("--source", "stop", "--target", "Stop"), "is the source's own class"),
        (("--source", "yield"), "1 image of class 'yield'; give at least 16"),
        ((*_GOAL, "--area", "200%"), "--area 200%: write a share such as 10%"),
        ((*_GOAL, "--kind", "universal", "--area", "90%"), "larger than what fits on the sign"),
        ((*_GOAL, "--kind", "universal", "--area", "55%"), "--area 55%: a patch of that size, turned by"),
        ((*_GOAL, "--kind", "stickers", "--area", "95%"), "2 sticker(s) on together 0.95 of the sign"),
        ((*_GOAL, "--kind", "sticker"), "unknown kind 'sticker': did you mean stickers"),
        ((*_GOAL, "--mask", "octogon"), "unknown mask 'octogon': did you mean octagon"),
        ((*_GOAL, "--mask", "none.png", "--kind", "stickers"), "no such mask file"),
        ((*_GOAL, "--mask", "EMPTY", "--kind", "stickers"), "the mask is empty"),
        ((*_GOAL, "--mask", "WIDE", "--kind", "stickers"), "do not fit images of 32x32"),
        ((*_GOAL, "--mask", "EMPTY", "--kind", "universal"), "give it with --kind stickers"),
        ((*_GOAL, "--sign-share", "1.5"), "--sign-share 1.5"),
        ((*_GOAL, "--conditions", "physics"), "unknown conditions 'physics': did you mean physical"),
        ((*_GOAL, "--steps", "0"), "steps"),
        ((*_GOAL, "--draws", "0"), "--draws 0: give at least 1"),
        ((*_GOAL, "--limit", "7"), "--limit 7: give at least 8 images"),
        ((*_GOAL, "--limit", "1", "--kind", "per-image"), "--limit 1: give at least 2 images"),
        ((*_GOAL, "--palette", "colors.txt"), "is only used with --nps"),
        ((*_GOAL, "--palette", "colors.txt", "--nps", "1"), "no such palette"),
        ((*_GOAL, "--photos", "nowhere"), "--photos nowhere: no such folder"),
        ((*_GOAL, "--photos", "nowhere", "--kind", "per-image"), "has no place on other photographs"),
        ((*_GOAL, "--distances", "5,far"), "--distances 5,far: write numbers separated by commas"),
        ((*_GOAL, "--angles", "95"), "less than 80 degrees"),
        ((*_GOAL, "--size-cm", "0"), "--size-cm 0: give the printed width"),
        ((*_GOAL, "--dpi", "0"), "--dpi 0: give dots per inch"),
        ((*_GOAL, "--dpi", "2400", "--size-cm", "400"), "pixels is too large; lower it or --size-cm"),
        ((*_GOAL, "--train-data", "absent.npz"), "absent.npz: no such file or folder"),
        ((*_GOAL, "--device", "abacus"), "device 'abacus' cannot be used here"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command, signs: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    pictures = {"EMPTY": np.zeros((32, 32), np.uint8), "WIDE": np.full((16, 64), 255, np.uint8)}
    given = []
    for argument in arguments:
        if argument in pictures:
            file = tmp_path / f"{argument}.png"
            Image.fromarray(pictures[argument]).save(file)
            argument = str(file)
        given.append(argument)
    out = tmp_path / "out"
    code, told, error = command("patch", "demo", str(signs), *_SMALL, *given, "--out", str(out))
    assert (code, told) == (2, "")
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_model_without_gradients_is_said_in_one_line(command: Command, signs: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(
        "def load():\n    return lambda images: images.detach().flatten(1)[:, :100].sign()\n"
    )
    out = tmp_path / "out"
    code, told, error = command("patch", f"{tmp_path / 'flat.py'}:load", str(signs), *_GOAL, *_SMALL, "--out", str(out))
    assert (code, told, error.count("\n"), out.exists()) == (3, "", 1, False)
    assert "no gradient reaches the patch" in error


def test_markup_in_class_names_is_text_and_the_training_data_is_named(signs: Path, tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "\" onload='x'", "<b>no entry", "<!--"]
    with np.load(signs) as held:
        images = held["images"][:24]
    file = tmp_path / "hostile.npz"
    np.savez(file, images=images, labels=np.zeros(24, int), class_names=np.array(names))
    made = make_patch(
        "demo", str(file), source=names[0], target=names[1], steps=1, draws=1, layouts=1, conditions="none", dpi=20,
        out=tmp_path / "out",
    )  # fmt: skip
    assert made.record["source"] == names[0]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report
    assert "&#34; onload=&#39;x&#39;" in report
    assert not any(name in report for name in names)
    with pytest.raises(InputError, match=r"--train-data .*hostile.*: unknown class 'stop': choose from"):
        gather(str(signs), str(file), "stop", kind="universal", limit=None, resize=None, seed=0)


def test_a_folder_with_other_things_is_left_alone(command: Command, signs: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    code, _, error = command("patch", "demo", str(signs), *_GOAL, *_SMALL, "--out", str(tmp_path))
    assert code == 2
    assert "holds other files and no patch" in error
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]
