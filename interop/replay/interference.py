"""What a man in the middle does to one unit of a live session, as data and as a small machine.

`Interference` says which unit, of which direction, and what becomes of it; `Interferer` is fed the
units of a session and says what to send instead. It has no socket: `interop.replay.middle` does as
it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

from interop.direction import Direction

if TYPE_CHECKING:
    from interop.replay.flights import Flight, Role, Unit

__all__ = ["CUT", "Action", "Cut", "Interference", "Interferer", "Pause", "Step"]


class Action(Enum):
    """What becomes of the unit."""

    DUPLICATE = "sent twice"
    DUPLICATE_LATER = "sent, and again after the next unit"
    SWAP = "sent after the next unit"
    DELAY = "held back for a while"
    DROP = "left out"
    DROP_AND_CUT = "left out, and the connection cut"
    TRUNCATE = "cut in the middle, and the connection with it"
    SUBSTITUTE = "replaced by the same unit of an earlier session"
    INSERT = "preceded by the same unit of an earlier session"


@dataclass(frozen=True)
class Pause:
    """Send nothing for a while."""

    seconds: float


class Cut(Enum):
    """End the direction: no more of it is passed on."""

    CUT = "cut"


CUT: Final = Cut.CUT
Step: TypeAlias = "bytes | Pause | Cut"


@dataclass(frozen=True)
class Interference:
    """One action on the `ordinal`-th unit (from 1) of a role, in one direction."""

    role: Role
    action: Action
    ordinal: int = 1
    direction: Direction = Direction.CLIENT_TO_SERVER
    pause_seconds: float = 0.1


class Interferer:
    """Carries out one interference, or none; `applied` says whether its unit came by.

    `earlier` is the flight of another session, from which units are spliced in.
    """

    def __init__(self, interference: Interference | None, earlier: Flight | None = None) -> None:
        self._interference = interference
        self._earlier = earlier
        self._seen = 0
        self._held: bytes | None = None
        self.applied = False

    def take(self, direction: Direction, unit: Unit) -> list[Step]:
        """Return what to send in place of a unit."""
        interference = self._interference
        if interference is None or direction is not interference.direction:
            return [unit.raw]
        if self._held is not None:
            held, self._held = self._held, None
            self.applied = True
            return [unit.raw, held]
        if unit.role is not interference.role:
            return [unit.raw]
        self._seen += 1
        if self._seen != interference.ordinal:
            return [unit.raw]
        return self._apply(interference, unit)

    def finish(self, direction: Direction) -> list[Step]:
        """Return what is to be sent before the end of a direction."""
        if self._interference is None or direction is not self._interference.direction:
            return []
        held, self._held = self._held, None
        return [] if held is None else [held]

    def _apply(self, interference: Interference, unit: Unit) -> list[Step]:
        raw, action = unit.raw, interference.action
        if action in {Action.SWAP, Action.DUPLICATE_LATER}:
            self._held = raw  # and applied only if something follows
            return [raw] if action is Action.DUPLICATE_LATER else []
        if action in {Action.SUBSTITUTE, Action.INSERT}:
            earlier = self._earlier.of(unit.role) if self._earlier is not None else ()
            if len(earlier) < interference.ordinal:
                return [raw]
            self.applied = True
            spliced = earlier[interference.ordinal - 1]
            return [spliced] if action is Action.SUBSTITUTE else [spliced, raw]
        self.applied = True
        steps: dict[Action, list[Step]] = {
            Action.DUPLICATE: [raw, raw],
            Action.DELAY: [Pause(interference.pause_seconds), raw],
            Action.DROP: [],
            Action.DROP_AND_CUT: [CUT],
            Action.TRUNCATE: [raw[: len(raw) // 2], CUT],
        }
        return steps[action]
