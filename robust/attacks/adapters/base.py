"""What every adapted attack shares: how a library's attack becomes one of ours."""

from __future__ import annotations

import importlib.util
import inspect
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust.attacks.adapters.bridge import Bridge, Stop
from robust.attacks.adapters.catalog import Catalog, Entry, Setting
from robust.attacks.adapters.isolation import own_randomness, renamed_errors
from robust.attacks.base import Goal, Model, still_open
from robust.attacks.losses import margin
from robust.attacks.queries import CountedAttack, Queried, check_queries, only_asks
from robust.errors import InputError, RobustError, unknown
from robust.silence import quiet


@dataclass(frozen=True)
class AdaptedAttack(CountedAttack):
    """An attack of another library, with the call and the guarantees of our own.

    Settings:
        attack: the attack's name in its library, in any case, such as ``HopSkipJump``.
        options: the library's own options for it, as (name, value) pairs; the rest stay at the library's defaults, but
            for those that follow from norm and eps.

        stop: end each search once a point inside ball and box fools the model. Without, the library runs to its end,
            which costs more and breaks no more images, but gives the smallest perturbation of a minimum-norm attack.
        queries: forward passes that any one image may cost, the clean one and the last check included; for attacks that
            only ask (score, decision). The library is stopped at the limit. None: as many as the library asks for. May
            stand among ``options`` too.

    Only images that are not fooled already reach the library. An image that it fooled comes back as the first point
    that did so inside ball and box (without ``stop``, as the library's last, where that does so too). For any other the
    library's last point is brought into ball and box, and comes back if its margin is larger than the original's; else
    the original does. So a minimum-norm attack that finds nothing inside eps claims nothing.

    Weights, ``.grad``, flags and the random state of torch, NumPy and Python are as before. Every number comes from
    ``seed`` and the images. Results do not depend on how the images are batched, but for ART's attacks that draw for
    whole batches (random starts) and Foolbox's that stop for whole batches (L2CarliniWagnerAttack and EADAttack, unless
    ``abort_early=False``). Attacks that only ask the model are run on one image at a time, so that every question has
    an owner.

    Raises InputError for an unknown attack or option, and for ``queries`` of an attack that needs more than answers;
    NoGradientError where no gradient reaches the input; RobustError with one line that names the attack for any error
    in the library.
    """

    _: KW_ONLY
    attack: str
    options: tuple[tuple[str, Any], ...] = ()
    stop: bool = True
    queries: int | None = None

    catalog: ClassVar[Catalog]
    reserved: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "attack", self.catalog.resolve(self.attack))
        set_field(self, "queries", dict(self.options).get("queries", self.queries))
        set_field(self, "options", tuple(option for option in self.options if option[0] != "queries"))
        # What other attacks fix for a class is fixed here for an instance.
        set_field(self, "name", f"{self.catalog.library}:{self.attack}")
        for key in ("norms", "knowledge", "source", "targetable"):
            set_field(self, key, getattr(self.entry, key))
        self._check_queries()
        valid = [*self.option_names(), *(["queries"] if only_asks(self) else [])]
        for option, _ in self.options:
            if option not in valid:
                raise unknown(f"option of {self.name}", option, valid)

    @property
    def entry(self) -> Entry:
        return self.catalog.entries[self.attack]

    def _check_queries(self) -> None:
        if self.queries is None:
            return
        if not only_asks(self):
            raise InputError(f"{self.name} is no query attack, so it takes no limit of queries")
        if type(self.queries) is not int:
            raise InputError(f"{self.name}: queries must be int, not {self.queries!r}")
        check_queries(self.name, self.queries)

    @classmethod
    @abstractmethod
    def find_class(cls, attack: str) -> type | None:
        """The library's class of that name, None where the installed version has none. Imports the library."""

    @classmethod
    def available(cls, attack: str) -> bool:
        """Whether the installed library has this attack and all that it needs."""
        needs = cls.catalog.entries[attack].needs
        missing = needs is not None and importlib.util.find_spec(needs) is None
        return not missing and cls.find_class(attack) is not None

    def library_class(self) -> Any:
        """The library's class of this attack. Raises InputError where it is not installed."""
        if not self.available(self.attack):
            needs = self.entry.needs
            remedy = f"it needs the package {needs}: pip install {needs}" if needs else "a newer version may have it"
            raise InputError(f"{self.name} is not in the installed {self.catalog.library}; {remedy}")
        return self.find_class(self.attack)

    def option_names(self) -> list[str]:
        """The options that a user may set."""
        return [name for name in self.accepted() if name not in self.reserved]

    def accepted(self) -> list[str]:
        """All parameters of the library's class."""
        parameters = list(inspect.signature(self.library_class().__init__).parameters.values())[1:]
        return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    def construct(self, *arguments: Any, **settings: Any) -> Any:
        """The library's attack object. Raises InputError where it refuses the user's options."""
        try:
            return self.library_class()(*arguments, **settings | dict(self.options))
        except (TypeError, ValueError) as error:
            if self.options:
                written = ", ".join(f"{name}={value!r}" for name, value in self.options)
                raise InputError(f"{self.name}({written}): {' '.join(str(error).split())}") from error
            raise

    @abstractmethod
    def search(self, bridge: Bridge, images: Tensor, goal: Goal, setting: Setting, seeds: Tensor) -> Tensor:
        """What the library finds for images (n, C, H, W) in [0, 1], none of them fooled.

        Gradients are enabled and the global generators are seeded; ``seeds`` (n,) are those of the images.
        """

    def _checked(self, images: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Goal, Tensor]:
        if images.dim() != 4:
            raise InputError(f"{self.name} takes images of shape (N, C, H, W), not {tuple(images.shape)}")
        if self.entry.square and images.shape[2] != images.shape[3]:
            raise InputError(f"{self.name} takes square images only, not {images.shape[2]} by {images.shape[3]}")
        return super()._checked(images, labels, targets)

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        logits = model(images)
        index = still_open(logits, goal, eps)
        broken_at = goal.met(logits).long()
        spent = torch.ones_like(broken_at)
        if not len(index):
            return Queried(images.clone(), spent, broken_at)
        aim = goal
        if self.entry.aims and goal.targets is None:
            aim = Goal(goal.labels, logits.scatter(1, goal.labels[:, None], -torch.inf).argmax(1))
        last, first = images.clone(), images.clone()
        fooled, solved = torch.zeros_like(eps, dtype=torch.bool), torch.zeros_like(eps, dtype=torch.bool)
        with quiet(), own_randomness(images.device) as seed, renamed_errors(self.name):
            for group in self._groups(index, eps):
                seed(int(seeds[group].sum()) % 2**63)
                setting = Setting(self.norm, float(eps[group[0]]), tuple(images.shape[1:]), logits.shape[1])
                bridge = Bridge(
                    model, images[group], goal[group], eps[group], self.geometry,
                    probabilities=self.entry.probabilities, patience=self._patience(), stop=self.stop,
                )  # fmt: skip
                with suppress(Stop), torch.enable_grad():
                    points = self.search(bridge, images[group].clamp(0, 1), aim[group], setting, seeds[group])
                    last[group] = points.detach().to(images)
                first[group], fooled[group], solved[group] = bridge.found, bridge.fooled, bridge.solved
                spent[group] += -(-bridge.asked // len(group))
                if bridge.asked_first:
                    broken_at[group] = 1 + bridge.asked_first
        if self.stop:
            last[solved] = first[solved]
        met, result = self._settle(model, images, last, goal, eps, index, logits)
        spent[index] += 1
        lost = index[fooled[index] & ~met]
        result[lost] = first[lost]
        late = index[met & (broken_at[index] == 0)]
        broken_at[late] = spent[late]
        return Queried(result, spent, broken_at)

    def _patience(self) -> int | None:
        """The points that a search may ask about: the entry's number, or five times the user's own budget where that is
        more, but never what would leave no query for the last check."""
        own = self.entry.patience
        if own is not None:
            own = max(own, 5 * int(dict(self.options).get("max_iter", 0)))
        if self.queries is None:
            return own
        return self.queries - 2 if own is None else min(own, self.queries - 2)

    def _groups(self, index: Tensor, eps: Tensor) -> Iterator[Tensor]:
        """The images that go to the library together: those of one radius, or each alone."""
        if self.entry.alone or only_asks(self):
            yield from index[:, None]
        else:
            yield from (index[eps[index] == radius] for radius in torch.unique(eps[index]))

    def _settle(
        self, model: Model, images: Tensor, last: Tensor, goal: Goal, eps: Tensor, index: Tensor, logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Brings the points at ``index`` into ball and box, and keeps each that is worth more than its original.

        Returns whether each of them fools the model, and the images with them put in.
        """
        clean, aim = images[index], goal[index]
        finite = last[index].flatten(1).isfinite().all(1).view(-1, *[1] * (images.dim() - 1))
        inside = self.geometry.project(torch.where(finite, last[index], clean), clean, eps[index])
        after = model(inside)
        met = aim.met(after)
        won = met | (margin(after, aim) > margin(logits[index], aim))
        result = images.clone()
        result[index[won]] = inside[won]
        return met, result


def import_failure(library: str, error: ImportError) -> RobustError:
    """The error for a library that is installed but cannot be imported."""
    return RobustError(f"{library} cannot be imported: {' '.join(str(error).split())}")
