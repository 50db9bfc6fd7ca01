"""What an attacker has learned from the sessions recovered so far, for those that resume them.

Whoever opens a session with a key that gives its main secret has its tickets too, and so the
sessions that resume it: a TLS 1.2 resumption has the very same main secret (RFC 5246 section
7.4.1.2, RFC 5077), and a TLS 1.3 ticket stands for a pre-shared key that follows from the
resumption secret (RFC 9846 section 4.7.1). One `LearnedSecrets` is shared by the sessions of a
capture.

Sessions are believed to be what they were proven to be: only a secret that has opened a record is
learned. What is learned is a candidate all the same, so a server that reuses another's session id
costs a session, never its truth. The memory holds `limit` entries and forgets the oldest.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

__all__ = ["LearnedSecrets"]

DEFAULT_LIMIT = 2**16
_DIGEST_LENGTH = 16

_SESSION_ID, _TICKET = b"session id", b"ticket"


class LearnedSecrets:
    """Secrets by what a client resumes with; names are kept as digests, for their size."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self._limit = limit
        self._secrets: OrderedDict[bytes, bytes] = OrderedDict()  # a dict's oldest is slow to find

    def __len__(self) -> int:
        return len(self._secrets)

    def __repr__(self) -> str:
        return f"LearnedSecrets({len(self)} secrets)"

    def learn_session_id(self, session_id: bytes, main_secret: bytes) -> None:
        """Remember the main secret of a TLS 1.2 session; without a session id it has no name."""
        if session_id:
            self._learn(_SESSION_ID, session_id, main_secret)

    def learn_ticket(self, ticket: bytes, secret: bytes) -> None:
        """Remember what a ticket stands for: a main secret, or in TLS 1.3 a pre-shared key."""
        if ticket:
            self._learn(_TICKET, ticket, secret)

    def of_session_id(self, session_id: bytes) -> bytes | None:
        """Recall the main secret of a session id."""
        return self._secrets.get(_digest(_SESSION_ID, session_id))

    def of_ticket(self, ticket: bytes) -> bytes | None:
        """Recall what a ticket stands for."""
        return self._secrets.get(_digest(_TICKET, ticket))

    def _learn(self, kind: bytes, name: bytes, secret: bytes) -> None:
        digest = _digest(kind, name)
        self._secrets.pop(digest, None)  # so that it counts as new
        if len(self._secrets) >= self._limit:
            self._secrets.popitem(last=False)
        self._secrets[digest] = secret


def _digest(kind: bytes, name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=_DIGEST_LENGTH, person=kind).digest()
