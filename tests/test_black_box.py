"""Query attacks beside closed forms, and audits of models that answer and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Linear, Recording, linear_gain
from subjects import LinearModel, Masked, distances, images_of
from torch import Tensor

import robust
from robust import plan
from robust.attacks import HopSkipJump, RayS, SimBA, SparseRS
from robust.attacks.queries import DecisionAttack
from robust.errors import InputError
from robust.ledger import Ledger
from robust.reports.figures import query_figure
from robust.summary import AttackRecord, QueryRecord, ThreatResult

SEEN = {"linf": 0.004, "l2": 0.03, "l1": 0.12}


def halves(values: int, seed: int = 0) -> tuple[Linear, Tensor, Tensor]:
    """Two classes either side of a plane, and five images (5, 1, 6, values / 6) of class 0, inside the box."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(1, values, generator=generator, dtype=torch.float64)
    images = 0.4 + 0.2 * torch.rand(5, 1, 6, values // 6, generator=generator, dtype=torch.float64)
    model = Linear(torch.cat([weights, -weights]), torch.zeros(2, dtype=torch.float64))
    model.bias.data[0] = 0.5 - float(2 * (images.flatten(1) @ weights.T).min())
    return model, images, torch.zeros(5, dtype=torch.long)


def exact(model: Linear, images: Tensor, order: float) -> np.ndarray:
    """Distances to the plane in the norm whose dual has this order, while the box does not bind."""
    slope = (model.weights[0] - model.weights[1]).detach().numpy()
    gap = (images.flatten(1).numpy() @ slope) + float((model.bias[0] - model.bias[1]).detach())
    return gap / np.linalg.norm(slope, ord=order)


class TestDecisionAttacks:
    @pytest.mark.parametrize(
        ("attack", "order", "ratio"),
        [(HopSkipJump(norm="l2", queries=2000), 2, 1.03), (HopSkipJump(queries=2000), 1, 1.25),
         (RayS(queries=1500), 1, 1.02)],
    )  # fmt: skip
    def test_distances_approach_those_of_a_plane(self, attack: DecisionAttack, order: float, ratio: float) -> None:
        model, images, labels = halves(36)
        points, found = attack.smallest(model, images, labels)
        wanted = exact(model, images, order)
        assert (found.numpy() >= wanted * (1 - 1e-6)).all(), "nearer than the plane itself"
        assert (found.numpy() <= wanted * ratio).all(), found.numpy() / wanted
        with torch.no_grad():
            assert (model(points).argmax(1) == 1).all()

    def test_rays_in_one_dimension_is_a_search_for_the_boundary(self) -> None:
        """One value, boundary 0.3 above: the ray upwards is found by its first query but one, then halved."""
        images = torch.full((1, 1, 1, 1), 0.5)
        model = Recording(Linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.8, -0.8])))
        points, distance = RayS(queries=60).smallest(model, images, torch.tensor([0]))
        asked = torch.cat(model.seen).flatten()
        assert asked[:3].tolist() == [0.5, 0.0, 1.0]
        assert float(distance) == pytest.approx(0.3, rel=0.003)
        assert float(points) == pytest.approx(0.8, rel=0.002)

    @pytest.mark.parametrize("attack", [HopSkipJump(queries=150), RayS(queries=150)])
    def test_hard_labels_are_enough(self, attack: DecisionAttack) -> None:
        model, images, labels = halves(36)

        def hard(points: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(model(points).argmax(1), 2)

        soft, rough = attack.smallest(model, images, labels), attack.smallest(hard, images, labels)
        assert torch.equal(soft[0], rough[0])
        assert soft[1].isfinite().all()

    def test_more_queries_bring_it_nearer(self) -> None:
        model, images, labels = halves(108)
        for make in (
            lambda n: HopSkipJump(norm="l2", queries=n), lambda n: HopSkipJump(queries=n), lambda n: RayS(queries=n)
        ):  # fmt: skip
            found = [make(queries).smallest(model, images, labels)[1] for queries in (60, 200, 800)]
            assert (found[1] <= found[0]).all()
            assert (found[2] <= found[1]).all()
            assert (found[2] < found[0]).all()

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_a_rival_of_the_start_takes_over_where_it_is_nearer(self, norm: str) -> None:
        """From one value at its end, whose way back is fooled nowhere, to an image that is brighter all over."""

        def model(points: Tensor) -> Tensor:
            flat = points.flatten(1)
            other = (flat[:, 0] > 0.99) | (flat.mean(1) > 0.52)
            return torch.stack([~other, other], 1).to(points)

        images, labels = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long)
        start = images[:1].clone()
        start[0, 0, 0, 0] = 1
        alone = HopSkipJump(norm=norm, queries=20, rivals=0, starts=start).smallest(model, images, labels)[1]
        among = HopSkipJump(norm=norm, queries=20, rivals=18, starts=start).smallest(model, images, labels)[1]
        assert (alone > 0.42).all()
        assert (among <= 0.36).all()

    def test_an_image_fooled_already_is_at_distance_0_and_one_never_fooled_at_none(self) -> None:
        model, images, labels = halves(36)
        labels[1] = 1
        assert RayS(queries=50).smallest(model, images, labels)[1][1] == 0
        points, distance = HopSkipJump(queries=20).smallest(
            lambda batch: torch.tensor([[1.0, 0.0]]).expand(len(batch), 2), images, torch.zeros(5, dtype=torch.long)
        )
        assert distance.isinf().all()
        assert torch.equal(points, images)

    def test_a_target_that_noise_never_meets_is_reached_from_given_starts(self) -> None:
        """Class 2 is where the first value is above 0.999, which a random image is once in a thousand."""

        def model(points: Tensor) -> Tensor:
            first = points.flatten(1)[:, 0]
            return torch.stack([torch.full_like(first, 0.5), first * 0, (first > 0.999).to(first)], 1)

        images, labels = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, dtype=torch.long)
        targets = torch.full((2,), 2)
        start = torch.ones(1, 1, 4, 4)
        blind = HopSkipJump(norm="l2", queries=60).smallest(model, images, labels, targets)[1]
        led = HopSkipJump(norm="l2", queries=400, starts=start).smallest(model, images, labels, targets)[1]
        assert blind.isinf().all()
        assert (led < 2).all()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"samples": 0}, "samples must be at least 1 and rivals at least 0, not 0 and 18"),
            ({"rivals": -1}, "rivals at least 0, not 50 and -1"),
            ({"starts": "x.png"}, "starts must be a tensor"),
            ({"starts": torch.zeros(0, 1, 6, 6)}, "at least one image"),
            ({"starts": torch.zeros(2, 3, 6, 6)}, "are not like the images"),
        ],
    )
    def test_settings_out_of_range_are_said(self, settings: dict[str, object], message: str) -> None:
        model, images, labels = halves(36)
        with pytest.raises(InputError, match=message):
            HopSkipJump(0.1, **settings)(model, images, labels)  # type: ignore[arg-type]


class TestSparseRS:
    @pytest.mark.parametrize("eps", [1.0, 5.0])
    def test_ends_at_the_optimum_of_a_linear_model(self, eps: float) -> None:
        model, images, labels = halves(36)
        model.bias.data[0] += 100  # out of reach: the whole budget goes into the climb
        points = SparseRS(eps, queries=2000)(model, images, labels)
        slope = (model.weights[1] - model.weights[0]).detach()
        flat = images.flatten(1)
        best = (slope * (torch.where(slope > 0, 1.0, 0.0) - flat)).sort(1, descending=True).values[:, : int(eps)].sum(1)
        gain = ((points - images).flatten(1) * slope).sum(1)
        torch.testing.assert_close(gain, best)

    def test_changes_values_at_an_end_of_the_box_to_the_other(self) -> None:
        model, _, labels = halves(36)
        model.bias.data[0] += 100
        images = (torch.arange(5 * 36).view(5, 1, 6, 6) % 2).double()
        points = SparseRS(7, queries=50)(model, images, labels)
        changed = points != images
        assert (changed.flatten(1).sum(1) == 7).all()
        assert torch.equal(points[changed], 1 - images[changed])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"exchanged": 0.0}, "share of the values"), ({"loss": "cw"}, "unknown loss"), ({"queries": 1}, "queries")],
    )
    def test_settings_out_of_range_are_said(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            SparseRS(5, **settings)  # type: ignore[arg-type]


class TestSimBA:
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l0", 5.0)])
    def test_pixels_end_at_the_optimum_of_a_linear_model(self, norm: str, eps: float) -> None:
        """Each value is independent of the others: having tried them all is the optimum in linf, near it in l0."""
        model, images, labels = halves(36)
        model.bias.data += torch.tensor([100.0, 0])  # beyond reach, so that no image leaves early
        found = SimBA(eps, norm=norm, basis="pixel", queries=600)(model, images, labels)
        slope = (model.weights[1] - model.weights[0]).detach().numpy()
        for image, point in zip(images, found, strict=True):
            gain = float(slope @ (point - image).flatten().numpy())
            best = linear_gain(norm, slope, image.flatten().numpy(), eps)
            assert gain <= best * (1 + 1e-9)
            assert gain >= best * (0.999 if norm == "linf" else 0.7)

    def test_waves_are_orthogonal_and_the_slow_ones_come_first(self) -> None:
        seen = Recording(lambda_model := _Flat())
        images = torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64)
        SimBA(0.2, norm="l2", queries=257, step=0.5)(seen, images, torch.zeros(1, dtype=torch.long))
        assert lambda_model.calls == 257
        moves = (torch.cat(seen.seen)[1::2] - images).flatten(1)  # forwards only: on a flat loss none is kept
        assert torch.allclose(moves.norm(dim=1), torch.full((128,), 0.1, dtype=torch.float64))
        assert torch.allclose(moves @ moves.T, 0.01 * torch.eye(128, dtype=torch.float64), atol=1e-9)
        turns = (moves.view(128, 2, 8, 8).sign().diff(dim=3) != 0).double().mean((1, 2, 3))
        turns += (moves.view(128, 2, 8, 8).sign().diff(dim=2) != 0).double().mean((1, 2, 3))
        assert turns[:32].mean() < 0.6 * turns[-32:].mean()

    @pytest.mark.parametrize(
        ("norm", "settings", "message"),
        [
            ("l2", {"basis": "dcd"}, "did you mean dct"),
            ("l1", {"basis": "dct"}, "basis='dct' has no l1 form; use 'pixel'"),
            ("l2", {"loss": "margn"}, "did you mean margin"),
            ("l2", {"step": 0.0}, "step must be above 0, not 0"),
        ],
    )
    def test_settings_out_of_range_are_said(self, norm: str, settings: dict[str, object], message: str) -> None:
        with pytest.raises(InputError, match=message):
            SimBA(0.1, norm=norm, **settings)  # type: ignore[arg-type]


class _Flat(torch.nn.Module):
    """The same answer for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


# Audits


@pytest.fixture(autouse=True)
def _short_sentinels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer runs on what still stands are the slowest part, and not what is tested here."""
    for longer in plan._LONGER.values():
        for norm, attack in longer.items():
            monkeypatch.setitem(longer, norm, attack.replace("5000", "500"))


def weights() -> np.ndarray:
    return LinearModel().head.weight.detach().numpy()


def in_numpy(images: Tensor) -> Tensor:
    """:class:`LinearModel` outside torch: not even a detach, so a gradient that is asked for raises an error."""
    return torch.from_numpy((images.numpy() - 0.5).reshape(len(images), -1) @ weights().T)


def hard_labels(images: Tensor) -> Tensor:
    answers = in_numpy(images.detach())
    return torch.nn.functional.one_hot(answers.argmax(1), answers.shape[1]).float()


def audited(model: Callable[[Tensor], Tensor], norm: str, **settings: object) -> ThreatResult:
    return robust.audit(model, images_of(LinearModel(), 10, 2), [f"{norm}:{SEEN[norm]}"], **settings).threats[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [in_numpy, hard_labels])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_function_without_gradients_is_audited_by_asking_alone(model: Callable[[Tensor], Tensor], norm: str) -> None:
    images, labels = images_of(LinearModel(), 10, 2)
    standing = int((distances(LinearModel(), images, labels, norm) > SEEN[norm]).sum())
    result = audited(model, norm)
    assert all(record.backward == 0 for record in result.attacks)
    assert {record.knowledge for record in result.attacks} <= {"none", "score", "decision"}
    assert {record.status for record in result.attacks} == {"done"}
    assert standing <= result.robust_accuracy.numerator <= standing + 1
    assert result.verdict == "inconclusive"
    (reason,) = result.reasons
    names = [record.name for record in result.attacks]
    if model is hard_labels:
        assert not any(name.startswith(("square", "simba")) for name in names)
        assert "only the class" in reason
    else:
        assert "square(queries=2000)" in reason
        assert "but scores" in reason
    assert ("rays(queries=2000)" if norm == "linf" else "hopskipjump(queries=2000)") in reason
    assert result.median_distance is not None


def test_l1_without_gradients_rests_on_single_values() -> None:
    images, labels = images_of(LinearModel(), 10, 2)
    standing = int((distances(LinearModel(), images, labels, "l1") > SEEN["l1"]).sum())
    result = audited(in_numpy, "l1")
    assert standing <= result.robust_accuracy.numerator <= standing + 1
    assert "square(queries=2000) and simba(queries=2000) alone" in result.reasons[0]


def test_a_function_with_gradients_is_audited_with_them() -> None:
    result = audited(LinearModel(), "linf")
    through = audited(lambda images: MODEL(images), "linf")
    assert through.verdict == result.verdict == "sound"
    assert through.robust_accuracy == result.robust_accuracy
    assert [record.name for record in through.attacks] == [record.name for record in result.attacks]


MODEL = LinearModel()


def test_a_module_that_hides_its_gradients_stays_suspect() -> None:
    result = audited(Masked(LinearModel(), "detach"), "linf")
    assert result.verdict == "suspect"
    assert all(record.backward == 0 for record in result.attacks)
    assert "audited as a black box" in " ".join(result.reasons)


def test_a_list_that_leaves_out_black_box_attacks_is_said() -> None:
    result = audited(in_numpy, "linf", attacks=("noise(draws=100)",))
    assert result.verdict == "inconclusive"
    assert "More queries break more: a fresh, longer run breaks" in " ".join(result.reasons)
    assert "leave out square(queries=2000), rays(queries=2000)" in " ".join(result.reasons)


# The report


def attack(name: str, broken_at: list[int], tried: int = 20) -> AttackRecord:
    return AttackRecord(
        name=name, knowledge="score", tried=tried, broken=len(broken_at), rejected=0, forward=900, backward=0,
        seconds=1.0, status="done", queries=QueryRecord(median=120, most=500, broken_at=broken_at),
    )  # fmt: skip


def test_the_figure_climbs_to_the_share_that_was_broken() -> None:
    svg = query_figure("t0-ask", [attack("square(queries=500)", [3, 40, 40, 499]), attack("rays", [])])
    assert "the most, 4 of 20 images, by square(queries=500)" in svg
    assert "square(queries=500)  4 of 20" in svg
    assert "rays  0 of 20" in svg
    assert svg == query_figure("t0-ask", [attack("square(queries=500)", [3, 40, 40, 499]), attack("rays", [])])


def test_what_was_asked_is_in_ledger_and_report(tmp_path: Path) -> None:
    result = audited(in_numpy, "linf", out=tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "queries per image" in html
    assert "Black-box only" in html
    assert "Audit the model itself, with its gradients" in html
    asking = [record for record in result.attacks if record.queries is not None]
    assert [record.name for record in asking][:2] == ["square(queries=2000)", "rays(queries=2000)"]
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for record in result.attacks:
            asked = ledger.queries("linf:0.004", record.name)
            assert len(asked) == (record.tried if record in asking else 0)
            if record.queries is None:
                continue
            broken_at = sorted(entry.broken_at for entry in asked if entry.broken_at is not None)
            assert record.queries.broken_at == broken_at
            assert len(broken_at) == record.broken
            assert f'<td class="num">{record.broken} of {record.tried}</td>' in html
            assert sum(entry.spent for entry in asked) == record.forward
            limit = 500 if "500)" in record.name else 2000
            assert all(entry.spent <= limit and (entry.broken_at or 0) <= entry.spent for entry in asked)
            broken = {row.image for row in ledger.rows("linf:0.004") if row.broken_by == record.name}
            assert {entry.image for entry in asked if entry.broken_at} == broken


def test_a_report_without_query_attacks_has_no_such_figure(tmp_path: Path) -> None:
    images, labels = images_of(LinearModel(), 6, 0)
    robust.audit(LinearModel(), (images, labels), ["l0:1"], attacks=["fgsm"], out=tmp_path)
    assert "queries per image" not in (tmp_path / "report.html").read_text(encoding="utf-8")
