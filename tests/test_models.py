"""Models from every kind of source, the guard that leaves them as found, and one clear line for each misfit."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import io
import logging
import os
import socket
import sys
import urllib.error
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robust.errors import InputError
from robust.models import (
    CallableModel,
    ExportedModel,
    Normalized,
    check_model,
    evaluating,
    identify,
    load_model,
    parameter_count,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Net(nn.Module):
    """A small classifier with batch normalization and dropout: (N, 3, 8, 8) to (N, 5)."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 36, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(torch.relu(self.bn(self.conv(x)))).flatten(1))


@pytest.fixture
def net() -> Net:
    """A net whose running statistics are those of a few batches, in eval mode."""
    net = Net()
    for _ in range(3):
        net(torch.rand(8, 3, 8, 8))
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(7, 3, 8, 8)


SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.linear(self.drop(torch.relu(self.bn(self.conv(x)))).flatten(1))


def build():
    return Net()


def needs(width):
    return Net(width)


def function():
    return lambda images: images.flatten(1)[:, :5]


def number():
    return 3


def doubles():
    return Net().double()


READY = Net()
WIDTH = 4


def _broken_inner():
    raise RuntimeError("the weights moved\\nto another disk")


def broken():
    return _broken_inner()


def nested():
    from robust.models import load_model
    return load_model("nowhere.pt")


abstract = type("Abstract", (), {"__call__": lambda self: Net()})()


def leaves():
    raise SystemExit(3)


def deep():
    return nn.Conv2d(3, 4, kernel_size=3, groups=2)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "my model.py"
    file.write_text(SOURCE)
    return file


def refused(spec: Any, *mentions: str, lines: int = 1, **options: Any) -> str:
    """The text of the InputError that loading ends in."""
    with pytest.raises(InputError) as failed:
        load_model(spec, **options)
    text = str(failed.value)
    assert text.count("\n") < lines
    for mention in mentions:
        assert mention in text
    return text


def same_logits(one: nn.Module, other: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.equal(one(images), other(images)))


# Python files


@pytest.mark.parametrize("name", ["build", "Net", "READY", "doubles", "abstract"])
def test_factory_gives_a_float32_module_in_eval_mode(source: Path, name: str) -> None:
    model = load_model(f"{source}:{name}")
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_factory_may_return_a_function(source: Path, images: Tensor) -> None:
    model = load_model(f"{source}:function")
    assert isinstance(model, CallableModel)
    assert torch.equal(model(images), images.flatten(1)[:, :5])


def test_file_is_run_anew_each_time(source: Path) -> None:
    assert isinstance(load_model(f"{source}:build"), nn.Module)
    source.write_text(SOURCE.replace("def build", "def bu1ld"))  # the same size and, to the second, the same time
    assert isinstance(load_model(f"{source}:bu1ld"), nn.Module)
    refused(f"{source}:build", "unknown name in", "did you mean bu1ld")


def test_folder_is_on_the_path_only_while_loading_and_its_modules_do_not_leak(tmp_path: Path) -> None:
    for name, classes in (("a", 3), ("b", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parts.py").write_text(f"CLASSES = {classes}\n")
        (tmp_path / name / "late.py").write_text(f"EXTRA = {classes}\n")
        (tmp_path / name / "model.py").write_text(
            "from torch import nn\nimport parts\n\n\ndef build():\n    import late\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(12, parts.CLASSES + late.EXTRA))\n"
        )
    path = list(sys.path)
    for name, classes in (("a", 3), ("b", 4), ("a", 3)):
        model = load_model(tmp_path / name / "model.py:build")
        assert model(torch.rand(1, 3, 2, 2)).shape == (1, 2 * classes)
        assert sys.path == path
    assert "model" not in sys.modules
    assert "torch.nn" in sys.modules


def test_loading_survives_an_environment_inside_the_models_folder(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "site-packages" / "installed_there"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "model.py").write_text(
        f"import sys\nsys.path.append({str(package.parent)!r})\nimport installed_there\n"
        "build = lambda: lambda images: images.flatten(1)\n"
    )
    load_model(f"{tmp_path / 'model.py'}:build")
    module = sys.modules["installed_there"]
    try:
        load_model(f"{tmp_path / 'model.py'}:build")
        assert sys.modules["installed_there"] is module
    finally:
        sys.path.remove(str(package.parent))
        del sys.modules["installed_there"]


def test_loading_does_not_forget_parts_of_packages_that_were_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "__init__.py").write_text("")
    (tmp_path / "older" / "part.py").write_text("")
    (tmp_path / "model.py").write_text("import older.part\nbuild = lambda: lambda images: images.flatten(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("older")
    try:
        load_model(f"{tmp_path / 'model.py'}:build")
        part = sys.modules["older.part"]
        load_model(f"{tmp_path / 'model.py'}:build")
        assert sys.modules["older.part"] is part
    finally:
        for name in ("older", "older.part"):
            sys.modules.pop(name, None)


def test_factory_that_raises_shows_its_own_frames(source: Path) -> None:
    text = refused(
        f"{source}:broken", "my model.py:broken: the factory raised RuntimeError: the weights moved", lines=12
    )
    assert "return _broken_inner()" in text
    assert 'raise RuntimeError("the weights moved' in text
    assert "models/factory" not in text
    assert len(text.splitlines()) <= 8


def test_factory_that_fails_inside_torch_shows_where_it_called(source: Path) -> None:
    text = refused(f"{source}:deep", "ValueError: in_channels must be divisible by groups", lines=12)
    assert "return nn.Conv2d(3, 4, kernel_size=3, groups=2)" in text
    assert "conv.py" in text


def test_factory_that_exits_does_not_end_the_program(source: Path) -> None:
    refused(f"{source}:leaves", "raised SystemExit: 3", lines=12)


def test_input_error_of_a_factory_passes_unchanged(source: Path) -> None:
    assert refused(f"{source}:nested") == "nowhere.pt: no such file"


def test_file_that_raises_shows_its_own_frames(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("import torch\n\nWEIGHTS = torch.load('nowhere.pt')\n")
    text = refused(f"{file}:build", "net.py: the file raised FileNotFoundError", lines=12)
    assert "WEIGHTS = torch.load('nowhere.pt')" in text


def test_what_a_file_may_not_be(source: Path, tmp_path: Path) -> None:
    refused(f"{source}:biuld", "unknown name in", "did you mean build")
    refused(f"{source}:WIDTH", "is a int: name a function that returns the model")
    refused(f"{source}:number", "returned a int: return a torch.nn.Module or a callable")
    refused(f"{source}:needs", "missing a required argument: 'width'", "needs no arguments")
    refused(str(source), "name the function that returns the model such as Net, build, needs", "my model.py:NAME")
    refused(f"{tmp_path}/nowhere.py:build", "nowhere.py: no such file")
    refused(f"{tmp_path}/nowhere.py", "nowhere.py: no such file")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import torch\n\ndef build(:\n    pass\n")
    refused(f"{wrong}:build", f"{wrong}:3: invalid syntax")
    refused(str(wrong), "write")
    wrong.write_bytes(b"x = 1\0")
    refused(f"{wrong}:build", f"{wrong}: source code string cannot contain null bytes: correct the file")
    wrong.write_text("X = 1\n")
    refused(f"{wrong}:build", "defines no 'build', and no function or class at all")


# Checkpoints


def save_checkpoints(net: Net, folder: Path) -> dict[str, Path]:
    state = net.state_dict()
    parallel = {f"module.{key}": value for key, value in state.items()}
    contents = {
        "plain": state,
        "wrapped": {"epoch": 3, "state_dict": state},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "parallel": parallel,
        "both": {"state_dict": parallel},
        "compiled": {f"_orig_mod.{key}": value for key, value in parallel.items()},
    }
    contents["compiled"] = {f"module._orig_mod.{key}": value for key, value in state.items()}
    files = {name: folder / f"{name}.pt" for name in contents}
    for name, content in contents.items():
        torch.save(content, files[name])
    files["old"] = folder / "old.pth"
    torch.save(state, files["old"], _use_new_zipfile_serialization=False)
    files["safe"] = folder / "safe.safetensors"
    save_file(state, files["safe"])
    return files


@pytest.mark.parametrize("name", ["plain", "wrapped", "model", "parallel", "both", "compiled", "old", "safe"])
def test_weights_of_every_kind_go_into_a_factorys_model(
    source: Path, net: Net, images: Tensor, tmp_path: Path, name: str
) -> None:
    file = save_checkpoints(net, tmp_path)[name]
    assert same_logits(load_model(f"{source}:build", weights=file), net, images)
    assert same_logits(load_model(Net(), weights=str(file)).eval(), net, images)


def test_weights_that_do_not_fit_name_the_keys(source: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    state = Net(classes=6).state_dict()
    del state["conv.bias"], state["bn.running_mean"]
    torch.save({**state, "extra.weight": torch.zeros(1)}, file)
    refused(
        f"{source}:build",
        "w.pt: the weights do not fit the model: 2 missing: conv.bias, bn.running_mean; 1 foreign: extra.weight; "
        "2 of another shape: linear.weight is (6, 144), not (5, 144)",
        weights=file,
    )


class Custom:
    """Not a tensor."""


@pytest.mark.parametrize("old", [False, True])
def test_pickles_are_loaded_only_on_trust(
    source: Path, net: Net, images: Tensor, tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "whole.pt"
    torch.save(net, file, _use_new_zipfile_serialization=not old)
    for spec, options in ((f"{source}:build", {"weights": file}), (file, {})):
        refused(spec, "whole.pt: a pickle with more than tensors", "Net)", "--trust", **options)
        assert same_logits(load_model(spec, trust=True, **options), net, images)
    torch.save({"state_dict": net.state_dict(), "note": Custom()}, file, _use_new_zipfile_serialization=not old)
    refused(f"{source}:build", "--trust", weights=file)
    assert same_logits(load_model(f"{source}:build", weights=file, trust=True), net, images)
    monkeypatch.delattr(sys.modules[__name__], "Custom")
    refused(f"{source}:build", "needs code that is not here", weights=file, trust=True)


def test_a_refused_pickle_runs_nothing(source: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    for old in (False, True):
        torch.save({"x": Bomb()}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=not old)
        refused(f"{source}:build", "--trust", weights=tmp_path / "bomb.pt")
        refused(tmp_path / "bomb.pt", "--trust")
    assert not (tmp_path / "exploded").exists()


def test_files_that_hold_no_weights(source: Path, net: Net, tmp_path: Path) -> None:
    spec = f"{source}:build"
    good = save_checkpoints(net, tmp_path)
    refused(spec, "nowhere.pt: no such file (weights)", weights=tmp_path / "nowhere.pt")
    for name, file in {"cut": good["plain"], "cutold": good["old"], "cutsafe": good["safe"]}.items():
        bad = tmp_path / f"{name}{file.suffix}"
        bad.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused(spec, bad.name, weights=bad)
    for name, content in {"text.pt": b"hello", "empty.pt": b"", "text.safetensors": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        refused(spec, name, weights=tmp_path / name)
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    refused(spec, "tensor.pt: holds no weights by name", weights=tmp_path / "tensor.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    refused(spec, "none.pt: holds no weights by name", weights=tmp_path / "none.pt")
    torch.jit.script(net).save(str(tmp_path / "script.pt"))
    refused(spec, "holds a whole model, not weights", weights=tmp_path / "script.pt")
    for file in (good["plain"], good["safe"]):
        refused(file, "holds weights alone", "--weights")
    refused(tmp_path / "script.pt", "has its own weights", weights=good["plain"])


# TorchScript


@pytest.mark.parametrize("kind", ["script", "trace", "freeze"])
@pytest.mark.parametrize("name", ["m.pt", "m.ts"])
def test_torchscript(net: Net, images: Tensor, tmp_path: Path, kind: str, name: str) -> None:
    script = torch.jit.trace(net, images) if kind == "trace" else torch.jit.script(net)
    if kind == "freeze":
        script = torch.jit.freeze(script)
    elif kind == "script":
        script.train()
    script.save(str(tmp_path / name))
    model = load_model(tmp_path / name)
    with torch.no_grad():
        assert torch.allclose(model(images), net(images), atol=1e-6)
    assert check_model(model, images, torch.zeros(7, dtype=torch.int64), 5) == 5
    before = identify(model)
    with evaluating(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
        pixels = images.clone().requires_grad_()
        model(pixels).sum().backward()
        assert pixels.grad is not None
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert identify(model) == before


def rewritten(source: Path, bad: Path, part: str, content: bytes) -> Path:
    """A copy of a zip file in which the members that ``part`` is in hold ``content``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(bad, "w") as new:
        assert any(part in name for name in old.namelist())
        for name in old.namelist():
            new.writestr(name, content if part in name else old.read(name))
    return bad


def test_damaged_torchscript(net: Net, tmp_path: Path) -> None:
    torch.jit.script(net).save(str(tmp_path / "m.pt"))
    bad = rewritten(tmp_path / "m.pt", tmp_path / "bad.pt", "code/__torch__", b"def forward(")
    refused(bad, "bad.pt: cannot be loaded", "damaged or incomplete")


# Exported programs


def export(net: nn.Module, file: Path, batch: int, dimension: Any = None) -> Path:
    shapes = None if dimension is None else {"x": {0: dimension}}
    torch.export.save(torch.export.export(net, (torch.rand(batch, 3, 8, 8),), dynamic_shapes=shapes), file)
    return file


@pytest.mark.parametrize(
    ("dimension", "smallest", "largest"),
    [(None, 4, 4), (torch.export.Dim("batch", min=2, max=5), 2, 5), (torch.export.Dim("batch"), None, None)],
)
def test_exported_program_takes_any_batch(
    net: Net, images: Tensor, tmp_path: Path, dimension: Any, smallest: int | None, largest: int | None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(export(net, tmp_path / "m.pt2", 4, dimension))
    assert isinstance(model, ExportedModel)
    assert smallest is None or (model.smallest, model.largest) == (smallest, largest)
    for count in (1, 2, 4, 5, 7):
        pixels = images[:count].clone().requires_grad_()
        logits = model(pixels)
        assert torch.allclose(logits, net(images[:count]), atol=1e-6)
        # The copies that fill a batch up take no gradient.
        (gradient,) = torch.autograd.grad(logits.square().sum(), pixels)
        expected = images[:count].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(net(expected).square().sum(), expected)
        assert torch.allclose(gradient, wanted, atol=1e-5)


def test_exported_program_is_a_module_like_any_other(net: Net, images: Tensor, tmp_path: Path) -> None:
    model = load_model(export(net, tmp_path / "m.pt2", 4))
    assert parameter_count(model) == parameter_count(net)
    assert same_logits(copy.deepcopy(model), model, images)
    assert model.eval() is model
    assert model.train().training
    assert check_model(model, images, torch.tensor([4]), 5) == 5
    with evaluating(model):
        assert not model.training
    assert model.training


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(3)])
def test_program_exported_in_training_mode_is_refused(tmp_path: Path, layer: nn.Module) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).flatten(1)

    refused(export(Trained().train(), tmp_path / "m.pt2", 4), "m.pt2: was exported in training mode: call model.eval()")
    assert isinstance(load_model(export(Trained().eval(), tmp_path / "n.pt2", 4)), ExportedModel)


def test_program_of_other_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (torch.rand(2, 3), torch.rand(2, 3))), tmp_path / "m.pt2")
    refused(tmp_path / "m.pt2", "takes other inputs than one tensor of images")


def test_exported_program_with_a_pickle_inside_runs_nothing(net: Net, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    bomb = io.BytesIO()
    torch.save(Bomb(), bomb)
    bad = rewritten(export(net, tmp_path / "m.pt2", 4), tmp_path / "bad.pt2", "sample_inputs", bomb.getvalue())
    before = dict(os.environ)
    refused(bad, "bad.pt2: a pickle with more than tensors", "--trust")
    assert not (tmp_path / "exploded").exists()
    assert dict(os.environ) == before


def test_damaged_and_compiled_programs_are_refused_quietly(
    net: Net, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source, bad = export(net, tmp_path / "good.pt2", 4), tmp_path / "bad.pt2"
    caplog.clear()
    capfd.readouterr()
    refused(rewritten(source, bad, "models/model.json", b"{}"), "bad.pt2: cannot be loaded")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""
    with zipfile.ZipFile(bad, "w") as new:
        new.writestr("m/archive_format", "pt2")
        new.writestr("m/data/aotinductor/model/lib.so", b"")
    refused(bad, "holds a compiled package, which has no gradients")
    bad.write_bytes(source.read_bytes()[:1000])
    refused(bad, "bad.pt2: not a model file")


# torchvision


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache of downloads."""

    def fail(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(socket, "create_connection", fail)
    monkeypatch.setattr("torch.hub.urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(("name", "size"), [("squeezenet1_1", 64), ("shufflenet_v2_x0_5", 64), ("googlenet", 64)])
def test_torchvision_with_a_checkpoint_of_other_classes(name: str, size: int, tmp_path: Path) -> None:
    from torchvision import models

    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    own = models.get_model(name, weights=None, num_classes=7, **extra).eval()
    torch.save({f"module.{key}": value for key, value in own.state_dict().items()}, tmp_path / "w.pt")
    before = torch.get_rng_state()
    model = load_model(f"torchvision:{name}", weights=tmp_path / "w.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not isinstance(model, Normalized)
    assert same_logits(model, own, torch.rand(2, 3, size, size))


def test_torchvision_checkpoint_that_does_not_fit(tmp_path: Path, net: Net) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pt")
    refused(
        "torchvision:squeezenet1_1", "do not fit the model", "missing: features.0.weight", weights=tmp_path / "w.pt"
    )
    refused("torchvision:squeezenet1_1", "no such file (weights)", weights=tmp_path / "nowhere.pt")


@pytest.mark.usefixtures("offline")
def test_torchvision_without_network_gives_one_line() -> None:
    text = refused("torchvision:resnet18", "torchvision:resnet18: its weights could not be downloaded", "--weights")
    assert "no route to host" in text


def test_default_weights_bring_their_mean_and_std(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    default = models.get_model_weights("squeezenet1_1").DEFAULT
    state = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(type(default), "get_state_dict", lambda self, **_: state)
    model = load_model("torchvision:squeezenet1_1")
    assert isinstance(model, Normalized)
    assert not any(module.training for module in model.modules())
    own = models.squeezenet1_1(weights=None).eval()
    own.load_state_dict(state)
    pictures = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        assert torch.equal(model(pictures), own((pictures - mean.view(3, 1, 1)) / std.view(3, 1, 1)))
        given = load_model("torchvision:squeezenet1_1", mean=0.5, std=0.25)
        assert torch.equal(given(pictures), own((pictures - 0.5) / 0.25))


def test_unknown_models_are_refused_with_the_nearest_names(tmp_path: Path) -> None:
    refused("torchvision:resnt50", "unknown torchvision model 'resnt50'", "resnet50")
    refused("torchvision:fcn_resnet50", "unknown torchvision model")  # a segmentation model
    refused("resnet50", "unknown model 'resnet50': did you mean torchvision:resnet50")
    refused("dmeo", "unknown model 'dmeo': did you mean demo")
    refused("timm:resnet18", "unknown model", "torchvision:resnet18")
    refused("https://example.org/classify", "unknown model")
    refused("zzzzqqq", "unknown model 'zzzzqqq': a model is demo, FILE.py:NAME")
    refused(tmp_path / "nowhere.pt", "nowhere.pt: no such file")
    refused(tmp_path, "a folder: the model is")
    (tmp_path / "m.onnx").write_bytes(b"onnx")
    refused(tmp_path / "m.onnx", "m.onnx: not a model file")


# Objects


def test_module_is_used_as_it_is(net: Net) -> None:
    net.double().train()
    net.conv.eval()
    assert load_model(net) is net
    assert net.training
    assert not net.conv.training
    behind = load_model(net, mean=[0.5], std=[0.5])
    assert isinstance(behind, Normalized)
    assert behind.model is net
    assert behind.training
    assert not net.conv.training
    assert not load_model(net.eval(), mean=[0.5], std=[0.5]).training


def test_function_becomes_a_module(images: Tensor) -> None:
    def classify(x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]

    model = load_model(classify)
    assert torch.equal(model(images), classify(images))
    assert not model.training
    assert parameter_count(model) == 0


def test_what_an_object_may_not_be() -> None:
    refused(3, "the model is a int")
    refused(Net, "the model is the class Net")
    refused(lambda: None, "does not take images alone")
    refused(lambda images, labels: None, "missing a required argument: 'labels'")
    refused(lambda images: images, "weights are given for a function", weights="w.pt")


def test_demo(images: Tensor) -> None:
    model = load_model("demo")
    assert not model.training
    assert model(torch.rand(2, 3, 32, 32)).shape[0] == 2


# Mean and std


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]),
        ([0.4], [0.5, 0.6, 0.7]),
        ([0.1, 0.2, 0.3], [0.5]),
        (0.4, 0.5),
        ((0.0,), (1,)),
    ],
)
def test_mean_and_std_become_part_of_the_model(net: Net, images: Tensor, mean: Any, std: Any) -> None:
    model = load_model(net, mean=mean, std=std)

    def broadcast(value: Any) -> Tensor:
        return torch.tensor(value, dtype=torch.float32).expand(3).view(1, 3, 1, 1)

    assert torch.equal(model(images), net((images - broadcast(mean)) / broadcast(std)))
    assert set(model.state_dict()) == {f"model.{key}" for key in net.state_dict()}


@pytest.mark.parametrize(
    ("mean", "std", "mention"),
    [
        ([0.5], [0.0], "std [0.0]: every number must be above 0"),
        ([0.5] * 3, [0.2, -0.2, 0.2], "every number must be above 0"),
        ([0.5, 0.5], [0.2] * 3, "mean has 2 numbers, std 3"),
        ([], [0.2], "give one finite number per channel"),
        ([float("nan")], [0.2], "give one finite number per channel"),
        ([0.5], [float("inf")], "give one finite number per channel"),
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], "divide both by 255"),
        ([0.5], None, "mean is given without std"),
        (None, [0.5], "std is given without mean"),
    ],
)
def test_bad_mean_and_std_are_refused(net: Net, mean: Any, std: Any, mention: str) -> None:
    refused(net, mention, mean=mean, std=std)


def test_counts_of_mean_and_channels_are_compared() -> None:
    gray = load_model(Net(channels=1), mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(InputError, match="mean and std have 3 numbers but the images 1 channel"):
        check_model(gray, torch.rand(2, 1, 8, 8), torch.tensor([0]), None)
    with pytest.raises(RuntimeError):  # no silent broadcast of gray images into color
        load_model(Net().eval(), mean=[0.5] * 3, std=[0.5] * 3)(torch.rand(2, 1, 8, 8))


# The guard


def fingerprint(net: nn.Module) -> list[Any]:
    """Everything that the guard gives back."""
    return [
        [module.training for module in net.modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone(), id(p.grad)) for p in net.parameters()],
        [buffer.clone() for buffer in net.buffers()],
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    assert before[0] == after[0]
    for (flag, gradient, identity), (flag2, gradient2, identity2) in zip(before[1], after[1], strict=True):
        assert flag == flag2
        assert identity == identity2
        assert gradient is gradient2 is None or torch.equal(gradient, gradient2)
    assert all(torch.equal(one, other) for one, other in zip(before[2], after[2], strict=True))


@pytest.fixture
def mixed(net: Net, images: Tensor) -> Net:
    """Some modules train and some do not; a layer is frozen; some parameters have a gradient."""
    net.train()
    net.bn.eval()
    net.conv.weight.requires_grad = False
    net(images).sum().backward()
    net.linear.bias.grad = None
    assert net.linear.weight.grad is not None
    return net


@pytest.mark.parametrize("fails", [False, True])
def test_guard_gives_everything_back_whatever_happens_inside(mixed: Net, images: Tensor, fails: bool) -> None:
    before = fingerprint(mixed)

    def body() -> None:
        with evaluating(mixed):
            assert not any(module.training for module in mixed.modules())
            assert not any(parameter.requires_grad for parameter in mixed.parameters())
            pixels = images.clone().requires_grad_()
            mixed(pixels).sum().backward()
            assert pixels.grad is not None
            assert all(parameter.grad is None for parameter in mixed.parameters())
            # What foreign attack code has been seen to do:
            mixed.zero_grad()
            mixed.train()
            for parameter in mixed.parameters():
                parameter.requires_grad = True
            mixed(images).sum().backward()
            mixed.bn.running_mean = torch.zeros(4)  # a new tensor in the buffer's place
            if fails:
                raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError, match="inside"):
            body()
    else:
        body()
    assert_same(before, fingerprint(mixed))


def test_guard_nests(mixed: Net) -> None:
    before = fingerprint(mixed)
    with evaluating(mixed):
        with evaluating(mixed):
            pass
        assert not any(module.training for module in mixed.modules())
        assert not any(parameter.requires_grad for parameter in mixed.parameters())
    assert_same(before, fingerprint(mixed))


def test_guard_makes_the_output_that_of_eval_mode(net: Net, images: Tensor) -> None:
    expected = net(images)
    net.train()
    with evaluating(net):
        assert torch.equal(net(images), expected)
        assert torch.equal(net(images), expected)
    assert not torch.equal(net(images), expected)


def test_guard_does_not_call_train_or_eval_of_the_model(net: Net) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def train(self, mode: bool = True) -> Picky:
            raise NotImplementedError("no modes here")

    with evaluating(Picky()):
        pass


def test_guard_lets_shared_computed_and_inference_tensors_pass() -> None:
    shared = nn.Linear(3, 3)
    pair = nn.Sequential(shared, shared, nn.BatchNorm1d(3))
    shared.register_parameter("none", None)
    with torch.inference_mode():
        pair[2].register_buffer("constant", torch.ones(2))
        pair.register_parameter("scale", nn.Parameter(torch.ones(2), requires_grad=False))
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    for model in (pair, computed):
        flags = [parameter.requires_grad for parameter in model.parameters()]
        with evaluating(model):
            assert not any(parameter.requires_grad for parameter in model.parameters())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags

    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = nn.Parameter(torch.ones(2))
            self.register_parameter("weight", nn.Parameter(torch.ones(2)))
            self._parameters["weight"] = weight * 2  # type: ignore[assignment]

    with warnings.catch_warnings(), evaluating(Computed()):
        warnings.simplefilter("error")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_guard_restores_inference_buffers_and_leaves_tables_alone(value: float) -> None:
    model = nn.Module()
    with torch.inference_mode():
        model.register_buffer("constant", torch.full((2,), value))
    model.register_buffer("table", torch.zeros(100_000))
    with evaluating(model):
        with torch.inference_mode():
            model.constant.add_(1)
        model.table.add_(1)
    assert torch.equal(model.constant, torch.full((2,), value)) or model.constant.isnan().all()
    assert float(model.table.min()) == 1


def test_guard_lets_a_plain_function_pass() -> None:
    with evaluating(lambda images: images):
        pass


def test_guard_leaves_untouched_buffers_alone(net: Net, images: Tensor) -> None:
    versions = [buffer._version for buffer in net.buffers()]
    pixels = images.clone().requires_grad_()
    with evaluating(net):
        loss = net(pixels).sum()
    loss.backward()  # buffers written to on leaving would make this fail
    assert [buffer._version for buffer in net.buffers()] == versions


# Identity


def test_identity_is_of_names_shapes_dtypes_and_bytes(net: Net) -> None:
    same = copy.deepcopy(net).train()
    assert identify(same) == identify(net)
    assert len(identify(net)) == 64
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    expected = hashlib.sha256()
    for name in sorted(state):
        dtype = "torch.int64" if name.endswith("tracked") else "torch.float32"
        expected.update(f"{name} {state[name].shape} {dtype}\n".encode() + state[name].tobytes())
    assert identify(net) == expected.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.conv.weight.data.view(-1)[0].add_(1e-6),
        lambda net: net.bn.running_var.mul_(1.5),
        lambda net: net.bn.num_batches_tracked.add_(1),
        lambda net: net.double(),
        lambda net: net.register_buffer("more", torch.zeros(1)),
        lambda net: net.register_buffer("more", torch.zeros(1), persistent=False),
        lambda net: setattr(net, "conv2", net._modules.pop("conv")),
        lambda net: setattr(net.linear, "weight", nn.Parameter(net.linear.weight.data.view(144, 5))),
    ],
)
def test_identity_changes_with_any_of_them(net: Net, change: Callable[[Net], Any]) -> None:
    before = identify(net)
    change(net)
    assert identify(net) != before


def test_identity_of_normalization_counts(net: Net) -> None:
    one, other = (load_model(net, mean=[0.5], std=[std]) for std in (0.5, 0.25))
    assert len({identify(one), identify(other), identify(net)}) == 3


def test_identity_of_unusual_tensors() -> None:
    def holding(value: Tensor) -> str:
        module = nn.Module()
        module.register_buffer("value", value)
        return identify(module)

    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert holding(half) == holding(half.clone()) != holding(half + 1)
    assert holding(torch.tensor(3)) != holding(torch.tensor(4))
    assert holding(torch.eye(3).to_sparse()) == holding(torch.eye(3).to_sparse())
    crossed = torch.arange(6.0).view(2, 3).t()
    assert holding(crossed) == holding(crossed.contiguous())
    assert holding(torch.empty(0, 3)) != holding(torch.empty(3, 0))


def one_function(images: Tensor) -> Tensor:
    return images


class Functor:
    def __call__(self, images: Tensor) -> Tensor:
        return images


def test_identity_without_weights_is_of_the_name() -> None:
    named = f"{__name__}.one_function"
    assert identify(load_model(one_function)) == hashlib.sha256(named.encode()).hexdigest()
    assert identify(load_model(functools.partial(one_function))) == identify(load_model(one_function))
    assert identify(load_model(Functor())) == hashlib.sha256(f"{__name__}.Functor".encode()).hexdigest()
    assert identify(nn.Flatten()) != identify(nn.ReLU())


def test_parameter_count() -> None:
    assert parameter_count(Net()) == 3 * 4 * 9 + 4 + 8 + 144 * 5 + 5
    shared = nn.Linear(3, 3)
    assert parameter_count(nn.Sequential(shared, shared)) == 12


# Does it fit?


def misfit(model: nn.Module, images: Tensor, *mentions: str, labels: list[int] | None = None, named: int = 5) -> str:
    with pytest.raises(InputError) as failed:
        check_model(model, images, torch.tensor(labels or [0]), named)
    text = str(failed.value)
    assert "\n" not in text
    for mention in mentions:
        assert mention in text
    return text


def test_fitting_model_gives_its_number_of_classes(net: Net, images: Tensor) -> None:
    net.train()
    before = fingerprint(net)
    assert check_model(net, torch.rand(100, 3, 8, 8), torch.tensor([4, 0]), 5) == 5
    assert check_model(net, images, torch.tensor([4, 0]), None) == 5
    assert check_model(net, images, torch.tensor([1]), 2) == 5
    assert_same(before, fingerprint(net))


def test_check_passes_few_images_and_no_gradient(images: Tensor) -> None:
    seen: list[tuple[int, bool]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        return x.flatten(1)

    check_model(load_model(watch), torch.rand(100, 3, 8, 8), torch.tensor([0]), None)
    assert seen == [(8, False)]


@pytest.mark.parametrize("kind", ["eager", "script", "export"])
@pytest.mark.parametrize(("taken", "given"), [(3, 1), (1, 3)])
def test_gray_and_color_are_told(kind: str, taken: int, given: int, tmp_path: Path) -> None:
    model: nn.Module = Net(channels=taken).eval()
    if kind == "script":
        model = torch.jit.script(model)
    elif kind == "export":
        torch.export.save(torch.export.export(model, (torch.rand(2, taken, 8, 8),)), tmp_path / "m.pt2")
        model = load_model(tmp_path / "m.pt2")
    kinds = {1: "grayscale images, 1 channel", 3: "color images, 3 channels"}
    misfit(
        model,
        torch.rand(2, given, 8, 8),
        f"the model failed on images of shape ({given}, 8, 8): ",
        f"it takes {kinds[taken]}, these have {given}: give images with {taken} channel(s)",
    )


def test_wrong_size_is_told(net: Net) -> None:
    misfit(net, torch.rand(2, 3, 9, 9), "shape (3, 9, 9): mat1 and mat2 shapes cannot be multiplied", "--resize HxW")
    script = torch.jit.script(net)
    misfit(script, torch.rand(2, 3, 9, 9), "mat1 and mat2 shapes cannot be multiplied", "--resize HxW")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(10, 5))
    misfit(flat, torch.rand(2, 1, 4, 4), "--resize HxW")


def returning(output: Callable[[Tensor], Any]) -> nn.Module:
    return load_model(lambda images: output(images))


@pytest.mark.parametrize(
    ("output", "mention"),
    [
        (lambda x: x.flatten(1).argmax(1), "returns int64 numbers"),
        (lambda x: x.flatten(1).long(), "returns int64 numbers"),
        (lambda x: x, "returns shape (7, 3, 8, 8) for 7 image(s)"),
        (lambda x: x.sum((1, 2, 3)), "returns shape (7,)"),
        (lambda x: x.flatten(1).mean(0, keepdim=True), "returns shape (1, 192) for 7 image(s)"),
        (lambda x: x.sum((1, 2, 3))[:, None], "one number per image"),
        (lambda x: (x.flatten(1), x), "returns a tuple, not a tensor"),
        (lambda x: {"logits": x.flatten(1)}, "returns a dict"),
        (lambda x: x.flatten(1) * float("nan"), "returns NaN logits"),
        (lambda x: x.flatten(1) / 0, "returns infinite logits"),
        (lambda x: 1 / 0, "division by zero"),
        (lambda x: [][0], "list index out of range"),
        (lambda x: exec("assert False"), "AssertionError"),
    ],
)
def test_outputs_that_are_no_logits(images: Tensor, output: Callable[[Tensor], Any], mention: str) -> None:
    misfit(returning(output), images.clamp_min(0.01), mention)


def test_labels_and_names_must_fit_the_logits(net: Net, images: Tensor) -> None:
    misfit(net, images, "label 5 is outside the model's 5 logits (classes 0 to 4)", labels=[0, 5, 2])
    misfit(net, images, "the data names 6 classes but the model gives 5 logits", named=6)


def test_weights_that_are_no_numbers(net: Net, images: Tensor) -> None:
    for spoil, mention in (
        (lambda m: m.linear.bias.data.fill_(float("nan")), "NaN (first in 'linear.bias')"),
        (lambda m: m.conv.weight.data[0].fill_(float("inf")), "infinite values (first in 'conv.weight')"),
        (lambda m: m.bn.running_mean.fill_(float("nan")), "NaN (first in 'bn.running_mean')"),
        (lambda m: m.bn.running_var.fill_(float("inf")), "infinite values (first in 'bn.running_var')"),
    ):
        spoiled = copy.deepcopy(net)
        spoil(spoiled)
        misfit(spoiled, images, mention)
    net.register_buffer("mask", torch.tensor([0, float("-inf")]))
    assert check_model(net, images, torch.tensor([0]), 5) == 5


def test_an_input_error_of_the_model_passes_unchanged(images: Tensor) -> None:
    def fail(_: Tensor) -> Tensor:
        raise InputError("mine")

    with pytest.raises(InputError, match=r"^mine$"):
        check_model(load_model(fail), images, torch.tensor([0]), None)


# Real models


def test_real_factory_gives_its_published_accuracy(robust_data: Path) -> None:
    from robust.data import load_data

    model = load_model(f"{robust_data / 'zoo.py'}:cifar_resnet2b")
    data = load_data(robust_data / "cifar10_sdp200.npz")
    assert check_model(model, data.batch(range(8)), data.labels, len(data.class_names)) == 10
    with torch.no_grad():
        right = int((model(data.batch(range(200))).argmax(1) == data.labels).sum())
    # 69.25 % on the whole test set; on 200 images four standard deviations are 13 points.
    assert 113 <= right <= 164


def test_real_weights_with_mean_and_std_equal_the_factorys_model(robust_data: Path, tmp_path: Path) -> None:
    published = load_model(f"{robust_data / 'zoo.py'}:cifar_cnn_a_adv")
    bare = tmp_path / "bare.py"
    bare.write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(\n"
        "        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),\n"
        "        nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),\n    )\n"
    )
    mean, std = [0.4914, 0.4824, 0.4467], [0.2471, 0.2435, 0.2616]
    weights = robust_data / "models" / "cifar_cnn_a_adv.safetensors"
    model = load_model(f"{bare}:build", weights=weights, mean=mean, std=std)
    assert parameter_count(model) == parameter_count(published) == 214_918
    assert same_logits(model, published, torch.rand(4, 3, 32, 32))
