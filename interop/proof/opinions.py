"""What a second decryptor said of the cells of the matrix, as data.

An independent program is asked to open what our attacker opened, with the same stolen files, and to
leave closed what stayed closed to ours. Its *opened* counts always: where ours opened nothing, it
refutes. Its *closed* counts only beside our own *closed*: where ours did open, byte for byte, the
other program could not do as much, which is said and is no contradiction. What it could not be
asked at all has a reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interop.proof.model import Cell

__all__ = ["Opinion", "SecondOpinion", "Standing", "contradictions", "standing"]

Standing: TypeAlias = Literal["agrees", "contradicts", "could not open it", "not asked"]


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """One cell as the other program sees it.

    `observed` is None where it was not asked, and `reason` says why. `recovered_bytes` counts
    octets of the payload; `whole` says that they are the payload, byte for byte.
    """

    session: str
    stolen: str
    observed: Literal["closed", "opened"] | None
    recovered_bytes: int = 0
    whole: bool = False
    reason: str = ""


class SecondOpinion(msgspec.Struct, frozen=True, kw_only=True):
    """All that the other program said; `version` is None, with a `reason`, where it was not run."""

    program: str
    version: str | None
    reason: str = ""
    opinions: tuple[Opinion, ...] = ()

    def on(self, session: str, stolen: str) -> Opinion:
        """Return the opinion on one cell."""
        for opinion in self.opinions:
            if (opinion.session, opinion.stolen) == (session, stolen):
                return opinion
        reason = self.reason or f"{self.program} was not asked"
        return Opinion(session=session, stolen=stolen, observed=None, reason=reason)


def standing(cell: Cell, opinion: Opinion) -> Standing:
    """Say how an opinion stands to what our attacker observed."""
    if opinion.observed is None:
        return "not asked"
    if opinion.observed == "opened":
        same = cell.observed == "opened" and cell.whole == opinion.whole
        return "agrees" if same else "contradicts"
    return "agrees" if cell.observed == "closed" else "could not open it"


def contradictions(cells: Sequence[Cell], second: SecondOpinion) -> Iterator[str]:
    """Yield a sentence for each cell that the other program contradicts."""
    opinions = {(opinion.session, opinion.stolen): opinion for opinion in second.opinions}
    for cell in cells:
        opinion = opinions.get((cell.session, cell.stolen))
        if opinion is not None and standing(cell, opinion) == "contradicts":
            yield (
                f"{cell.session} with {cell.stolen} stolen: {second.program} recovered "
                f"{opinion.recovered_bytes} bytes of the payload, and our attacker "
                f"{cell.recovered_bytes}"
            )
