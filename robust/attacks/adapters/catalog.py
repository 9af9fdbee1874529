"""What is known of a library's attacks before any is run: what each can do, and how it has to be called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from robust.attacks.base import Knowledge
from robust.errors import InputError, unknown


@dataclass(frozen=True)
class Setting:
    """What a library's attack is set up for: a norm, one radius, images of one shape (C, H, W), so many classes."""

    norm: str
    eps: float
    shape: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class Entry:
    """One attack of a library.

    Settings:
        norms, knowledge, source, targetable, summary: as in :class:`robust.attacks.registry.AttackInfo`.
        aims: the library's code only runs towards a class; without targets it is given the runner-up of each image.
        alone: images are attacked one by one. For attacks in which the images of a batch share random numbers, a stop
            or a failure, and for those that loop over the images anyway: these then do not depend on the batch.
        square: it takes square images only.
        probabilities: it reads the model's outputs as probabilities, so a softmax is put behind the model.
        needs: a package that the library imports for it and does not itself install.
        patience: images that the library may query before it gives up on one. For code that would search for ever.
        options: the library's options that follow from the setting; the user's own take precedence.
    """

    norms: tuple[str, ...]
    knowledge: Knowledge
    source: str
    summary: str
    _: KW_ONLY
    targetable: bool = True
    aims: bool = False
    alone: bool = False
    square: bool = False
    probabilities: bool = False
    needs: str | None = None
    patience: int | None = None
    options: Callable[[Setting], dict[str, Any]] = field(default=lambda _: {})


@dataclass(frozen=True)
class Catalog:
    """The attacks of one library: those that are adapted, their other names, and those that cannot be, with reasons."""

    library: str
    entries: Mapping[str, Entry]
    aliases: Mapping[str, str]
    excluded: Mapping[str, str]

    def resolve(self, name: str) -> str:
        """The attack's own name for any spelling of it. Raises InputError, with the reason or the nearest names."""
        own = {known.lower(): known for known in self.entries}
        own |= {alias.lower(): target for alias, target in self.aliases.items()}
        folded = name.strip().lower()
        if folded in own:
            return own[folded]
        for known, reason in self.excluded.items():
            if folded == known.lower():
                raise InputError(f"{self.library}:{known} cannot be used here: {reason}")
        names = [f"{self.library}:{known}" for known in (*self.entries, *self.aliases)]
        raise unknown("attack", f"{self.library}:{name}", names)
