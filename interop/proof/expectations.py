"""What theory says that a theft opens, and where the standards say so.

What is expected of a cell follows from what the recording says was negotiated, and from what the
session has to do with what was stolen. `_EXPECTATIONS` is the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from interop.proof.model import (
    CA_KEYS,
    CLIENT_KEY,
    EXPORTER,
    HARVEST,
    HARVEST_ML_KEM,
    LATER_TRAFFIC,
    LONG_TERM_THEFTS,
    TARGET_KEY,
    TRAFFIC,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interop.proof.model import Session, Theft

__all__ = ["Expectation", "Opens", "expectation"]

Opens: TypeAlias = Literal["nothing", "0-RTT data", "the client's data", "everything"]


class Expectation(NamedTuple):
    """What a kind of theft opens of a kind of session, and where the standard says so."""

    opens: Opens
    tls13: str
    tls12: str

    def basis(self, session: Session) -> str:
        """Return the section for the version of `session`."""
        return self.tls13 if session.version == "TLS 1.3" else self.tls12


_NONE_SUCH: Final = "no session of this version is like this"
_SIGNATURES_ONLY = Expectation("nothing", "RFC 9846, section 4.5.2", "RFC 5246, section 7.4.3")
_EPHEMERAL = Expectation("nothing", "RFC 9846, appendix F.1", "RFC 8422, section 2")
_STATIC_RSA = Expectation("everything", _NONE_SUCH, "RFC 5246, section 7.4.7.1")
_OWN_SECRETS = Expectation("everything", "RFC 9846, section 7.3", "RFC 5246, section 6.3")
_SAME_MAIN_SECRET = Expectation("everything", _NONE_SUCH, "RFC 5246, appendix F.1.4")
_UNRELATED = Expectation("nothing", "RFC 9846, section 7.1", "RFC 5246, section 8.1")
_KEY_EXCHANGE = Expectation("everything", "RFC 9846, section 7.4.2", "RFC 8422, section 5.10")
_HALF_A_HYBRID = Expectation("nothing", "draft-ietf-tls-hybrid-design, section 3.3", "")
_EXPORTER = Expectation("nothing", "RFC 9846, appendix F.1.4", "RFC 5705, section 5")
_FROM_HERE_ON = Expectation("the client's data", "RFC 9846, section 7.2", _NONE_SUCH)
_NOT_BEFORE = Expectation("nothing", "RFC 9846, appendix F.2", _NONE_SUCH)
_TICKET_OF_TLS12 = Expectation("everything", _NONE_SUCH, "RFC 5077, section 4")
_ISSUES_ONLY = Expectation("nothing", "RFC 9846, section 4.7.1", _NONE_SUCH)

# What a pre-shared key opens of the sessions that resume with it.
_RESUMED = {
    "psk_dhe_ke": Expectation("nothing", "RFC 9846, section 2.2", _NONE_SUCH),
    "psk_ke": Expectation("everything", "RFC 9846, appendix F.1", _NONE_SUCH),
    "0-RTT": Expectation("0-RTT data", "RFC 9846, section 2.3", _NONE_SUCH),
}

# By kind of theft, and by what the session is to it.
_EXPECTATIONS: Final[dict[tuple[str, str], Expectation]] = {
    **{(theft, "static RSA"): _STATIC_RSA for theft in LONG_TERM_THEFTS},
    **{(theft, "any other"): _EPHEMERAL for theft in LONG_TERM_THEFTS},
    (TARGET_KEY, "static RSA"): _STATIC_RSA,
    (TARGET_KEY, "any other"): _EPHEMERAL,
    **{(theft, "any"): _SIGNATURES_ONLY for theft in (CA_KEYS, CLIENT_KEY)},
    (EXPORTER, "any"): _EXPORTER,
    (TRAFFIC, "own"): _FROM_HERE_ON,
    (TRAFFIC, "unrelated"): _UNRELATED,
    (LATER_TRAFFIC, "own"): _NOT_BEFORE,
    (LATER_TRAFFIC, "unrelated"): _UNRELATED,
    ("session-secrets", "own"): _OWN_SECRETS,
    ("session-secrets", "same main secret"): _SAME_MAIN_SECRET,
    ("session-secrets", "unrelated"): _UNRELATED,
    ("ephemeral-key", "own"): _KEY_EXCHANGE,
    ("ephemeral-key", "unrelated"): _UNRELATED,
    (HARVEST, "classical key told"): _KEY_EXCHANGE,
    (HARVEST, "both halves told"): _HALF_A_HYBRID,
    (HARVEST, "unrelated"): _UNRELATED,
    (HARVEST_ML_KEM, "classical key told"): _UNRELATED,
    (HARVEST_ML_KEM, "both halves told"): _HALF_A_HYBRID,
    (HARVEST_ML_KEM, "unrelated"): _UNRELATED,
    ("ticket-key", "issued on TLS 1.2"): _TICKET_OF_TLS12,
    ("ticket-key", "resumed"): _TICKET_OF_TLS12,
    ("ticket-key", "issued on TLS 1.3"): _ISSUES_ONLY,
    ("ticket-key", "unrelated"): _UNRELATED,
    ("pre-shared-key", "issued on TLS 1.3"): _ISSUES_ONLY,
    ("pre-shared-key", "unrelated"): _UNRELATED,
    **{
        (kind, exchange): expected
        for kind in ("ephemeral-key", HARVEST, "ticket-key", "pre-shared-key")
        for exchange, expected in _RESUMED.items()
    },
}


def expectation(session: Session, theft: Theft, sessions: Mapping[str, Session]) -> Expectation:
    """Say what theory has a theft open of a session; `sessions` are all of them, by name."""
    kind, _, whose = theft.name.partition(":")
    return _EXPECTATIONS[kind, _RELATIONS[kind](session, whose, sessions)]


# What a session is to a theft, which names `whose` it was unless it is of long-term keys.


def _before(session: Session, sessions: Mapping[str, Session]) -> Session | None:
    return sessions.get(session.resumes) if session.resumed else None


def _to_server_key(session: Session, _whose: str, _sessions: Mapping[str, Session]) -> str:
    return _way(session, theirs=not session.target)


def _to_target_key(session: Session, _whose: str, _sessions: Mapping[str, Session]) -> str:
    return _way(session, theirs=session.target)


def _way(session: Session, *, theirs: bool) -> str:
    return "static RSA" if theirs and session.key_exchange == "static RSA" else "any other"


def _to_unusable(_session: Session, _whose: str, _sessions: Mapping[str, Session]) -> str:
    return "any"


def _to_traffic_secret(session: Session, whose: str, _sessions: Mapping[str, Session]) -> str:
    return "own" if session.name == whose else "unrelated"


def _to_secrets(session: Session, whose: str, sessions: Mapping[str, Session]) -> str:
    """On TLS 1.2 a resumption has the same main secret."""
    if whose == session.name:
        return "own"
    other = sessions[whose]
    resumes = session.resumes == whose or other.resumes == session.name
    if resumes and session.version == other.version == "TLS 1.2":
        return "same main secret"
    return "unrelated"


def _to_ephemeral_key(session: Session, whose: str, sessions: Mapping[str, Session]) -> str:
    if session.ephemeral_key == whose:
        return "own"
    before = _before(session, sessions)
    return session.key_exchange if before and before.ephemeral_key == whose else "unrelated"


def _to_ml_kem_keys(session: Session, _whose: str, _sessions: Mapping[str, Session]) -> str:
    if not session.ephemeral_key:
        return "unrelated"
    return "both halves told" if "MLKEM" in (session.group or "") else "classical key told"


def _to_classical_keys(session: Session, whose: str, sessions: Mapping[str, Session]) -> str:
    before = _before(session, sessions)
    if before and _to_ml_kem_keys(before, whose, sessions) == "classical key told":
        return session.key_exchange
    return _to_ml_kem_keys(session, whose, sessions)


def _to_ticket_key(session: Session, whose: str, _sessions: Mapping[str, Session]) -> str:
    if session.ticket_key != whose:
        return "unrelated"
    return session.key_exchange if session.resumed else f"issued on {session.version}"


def _to_pre_shared_keys(session: Session, whose: str, _sessions: Mapping[str, Session]) -> str:
    if session.resumed and session.resumes == whose:
        return session.key_exchange
    return "issued on TLS 1.3" if session.name == whose else "unrelated"


_RELATIONS: Final[dict[str, Callable[[Session, str, Mapping[str, Session]], str]]] = {
    **dict.fromkeys(LONG_TERM_THEFTS, _to_server_key),
    TARGET_KEY: _to_target_key,
    **dict.fromkeys((CA_KEYS, CLIENT_KEY, EXPORTER), _to_unusable),
    **dict.fromkeys((TRAFFIC, LATER_TRAFFIC), _to_traffic_secret),
    "session-secrets": _to_secrets,
    "ephemeral-key": _to_ephemeral_key,
    HARVEST: _to_classical_keys,
    HARVEST_ML_KEM: _to_ml_kem_keys,
    "ticket-key": _to_ticket_key,
    "pre-shared-key": _to_pre_shared_keys,
}
