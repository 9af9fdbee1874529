"""Query attacks, which only ask the model: whose each question is, how many there were, never more than agreed."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, exact, still_open
from robust.attacks.losses import LOSSES
from robust.errors import InputError, unknown
from robust.models import evaluating
from robust.randomness import image_seeds
from robust.threats import Norm, per_image


@dataclass(frozen=True)
class Queried:
    """What a query attack found, and what each image of the batch cost.

    ``points`` (N, C, H, W): as the attack's call returns them. ``spent`` (N,) int64: forward passes, the clean one
    included. ``broken_at`` (N,) int64: the pass that first fooled the model inside ball and box, counted from 1 (the
    clean one); 0 where none did.
    """

    points: Tensor
    spent: Tensor
    broken_at: Tensor


class Book:
    """Asks the model on behalf of the images of one run, and writes down what each of them cost and found.

    No image is ever asked about more than ``limit`` times, the clean pass included: what lies beyond is not asked.
    ``points`` (N, C, H, W) and ``distance`` (N,) are the nearest adversarial points so far (inf: none yet). An image is
    done with once one lies inside eps; without ``stop``, only at the limit.
    """

    def __init__(
        self, model: Model, images: Tensor, goal: Goal, eps: Tensor, geometry: Norm, limit: int, *, stop: bool = True
    ) -> None:
        self.images, self.goal, self.eps, self.geometry, self.limit = images, goal, eps, geometry, limit
        self._model, self._stop = model, stop
        self._together = max(len(images), 32)  # points that pass the model at once, whatever the attack asks for
        self.clean = model(images)
        self.spent = torch.ones(len(images), dtype=torch.long, device=images.device)
        self.broken_at = goal.met(self.clean).long()
        self.points, self._last = images.clone(), images.clone()
        self.distance = torch.full_like(images.flatten(1)[:, 0], torch.inf)
        self.distance[self.broken_at == 1] = 0
        self._open = torch.zeros_like(self.broken_at, dtype=torch.bool)
        self._open[still_open(self.clean, goal, eps)] = True

    @property
    def live(self) -> Tensor:
        """The positions of the images to go on with."""
        wanted = self._open & (self.spent < self.limit)
        return (wanted & (self.broken_at == 0) if self._stop else wanted).nonzero().squeeze(1)

    def ask(self, points: Tensor, owners: Tensor) -> Tensor:
        """The logits (M, k, K) of ``points`` (M, k, C, H, W), k for each image of ``owners`` (M,), no image twice.

        NaN, which fools nobody, where an image has no query left.
        """
        count, each = points.shape[:2]
        places = torch.arange(each, device=owners.device).expand(count, -1)
        asked = places < (self.limit - self.spent[owners])[:, None]
        logits = self.clean.new_full((count, each, self.clean.shape[1]), torch.nan, dtype=_float_of(self.clean))
        if bool(asked.any()):
            parts = torch.split(points[asked], self._together)
            logits[asked] = torch.cat([self._model(part) for part in parts]).to(logits.dtype)
        self._note(points, owners, self._fooled(logits, owners))
        self.spent[owners] += asked.sum(1)
        return logits

    def fooled(self, points: Tensor, owners: Tensor) -> Tensor:
        """The same for who only sees the decision: whether each point reaches the goal, (M, k) bool."""
        return self._fooled(self.ask(points, owners), owners)

    def stay(self, points: Tensor, owners: Tensor) -> None:
        """What comes back for these images, should no adversarial point be found; inside ball and box."""
        self._last[owners] = points

    def result(self) -> Queried:
        """An adversarial point inside the ball where there is one, else the best one known, brought into the ball."""
        known = per_image(self.distance.isfinite(), self.images).bool()
        inside = self.geometry.contains(self.points, self.images, self.eps)
        near = torch.where(
            per_image(inside, self.images).bool(), self.points,
            self.geometry.project(self.points, self.images, self.eps),
        )  # fmt: skip
        return Queried(torch.where(known, near, self._last), self.spent, self.broken_at)

    def _fooled(self, logits: Tensor, owners: Tensor) -> Tensor:
        each = logits.shape[1]
        goal = self.goal[owners.repeat_interleave(each)]
        return goal.met(logits.flatten(0, 1)).view(-1, each)

    def _note(self, points: Tensor, owners: Tensor, fooled: Tensor) -> None:
        """Keeps the nearest of the points that fool, and the number of the first that does so inside the ball."""
        rows, columns = fooled.nonzero(as_tuple=True)
        if not len(rows):
            return
        whose, found = owners[rows], points[rows, columns]
        lengths = self.geometry.length(found - self.images[whose])
        distance = torch.full_like(fooled, torch.inf, dtype=lengths.dtype)
        distance[rows, columns] = lengths
        nearest, column = distance.min(1)
        nearer = nearest < self.distance[owners]
        self.distance[owners[nearer]] = nearest[nearer]
        self.points[owners[nearer]] = points[nearer.nonzero().squeeze(1), column[nearer]]
        inside = torch.zeros_like(fooled)
        inside[rows, columns] = self.geometry.contains(found, self.images[whose], self.eps[whose])
        first = self.spent[owners] + 1 + inside.long().argmax(1)
        fresh = inside.any(1) & (self.broken_at[owners] == 0)
        self.broken_at[owners[fresh]] = first[fresh]


@dataclass(frozen=True)
class CountedAttack(Attack):
    """An attack that knows what each image of its batch cost: the call gives the points, ``queried`` the costs too."""

    def queried(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Queried:
        """The attack, and what each image cost. Arguments and errors are the call's."""
        goal, eps = self._checked(images, labels, targets)
        if not len(images):
            none = torch.zeros(0, dtype=torch.long, device=images.device)
            return Queried(images.clone(), none, none)
        with torch.inference_mode(False), evaluating(model), torch.no_grad():
            own = images.clone() if images.is_inference() else images.detach()
            return self.query(exact(model), own, goal, eps, image_seeds(own, self.seed))

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return self.query(model, images, goal, eps, seeds).points

    @abstractmethod
    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        """The attack itself, on checked arguments: eps and seeds (N,), gradients off, the model guarded."""


@dataclass(frozen=True)
class QueryAttack(CountedAttack):
    """An attack that only asks the model for its output. Its budget is a hard limit for each image.

    Settings:
        queries: forward passes that any one image may cost, the clean one included.

    Every image runs as if it were alone, and leaves the batch once it is fooled inside ball and box.
    """

    _: KW_ONLY
    queries: int = 1000

    def __post_init__(self) -> None:
        check_queries(self.name, self.queries)


@dataclass(frozen=True)
class ScoreAttack(QueryAttack):
    """A query attack that sees the logits, and looks for a higher loss.

    Settings:
        loss: ``margin``, ``ce`` or ``dlr``. By default the margin, and the cross-entropy of the target where targets
            are given.
    """

    _: KW_ONLY
    loss: str | None = None

    knowledge: ClassVar[Knowledge] = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None and self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    def judge(self, logits: Tensor, goal: Goal) -> Tensor:
        """The loss (N,) of logits (N, K), in float32 or better; -inf where it is no number."""
        loss = LOSSES[self.loss or ("margin" if goal.targets is None else "ce")]
        worst = -torch.inf
        return loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), goal).nan_to_num_(worst, worst, worst)


@dataclass(frozen=True)
class DecisionAttack(QueryAttack):
    """A query attack that sees nothing but the class, and so looks for the nearest adversarial point.

    It stops at the first one inside eps. ``eps`` may be left out (inf) for :meth:`smallest`, whose search goes on to
    the last query. For an image that was not fooled inside eps, the nearest adversarial point comes back, brought into
    the ball.
    """

    eps: float | Tensor = torch.inf
    _: KW_ONLY

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        book = Book(model, images, goal, eps, self.geometry, self.queries)
        self.search(book, seeds)
        return book.result()

    def smallest(
        self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nearest adversarial points found (N, C, H, W) and their distances (N,), whatever eps.

        Distance is 0 for images that are fooled unattacked, inf (and the image itself) where none was found. Every
        other image costs all of ``queries``. Arguments and errors are the call's.
        """
        goal, eps = replace(self, eps=torch.inf)._checked(images, labels, targets)
        if not len(images):
            return images.clone(), images.new_zeros(0)
        with torch.inference_mode(False), evaluating(model), torch.no_grad():
            own = images.clone() if images.is_inference() else images.detach()
            book = Book(exact(model), own, goal, eps, self.geometry, self.queries, stop=False)
            self.search(book, image_seeds(own, self.seed))
            return book.points, book.distance

    @abstractmethod
    def search(self, book: Book, seeds: Tensor) -> None:
        """The attack itself: asks the book about its live images until none is left."""


def only_asks(attack: Attack) -> TypeGuard[CountedAttack]:
    """Whether an attack sees nothing of the model but its answers, and can say what each image cost."""
    return isinstance(attack, CountedAttack) and attack.knowledge in ("score", "decision")


def check_queries(name: str, queries: int) -> None:
    """Raises InputError for a budget that leaves nothing beside the clean image."""
    if queries < 2:
        raise InputError(f"{name}: queries must be at least 2 (the image itself and one more), not {queries}")


def _float_of(answers: Tensor) -> torch.dtype:
    return answers.dtype if answers.is_floating_point() else torch.float32
