"""Attackers that do not do their work, one way each, and what can be left out of a judgement.

Each `Mutant` names the place it changes, the change, and the sentence that must come of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from mutation import Mutant

from interop.census.values import Tally
from interop.proof.model import Replay
from interop.proof.opinions import Opinion, SecondOpinion
from interop.wire.key_log import KeyLog
from interop.wire.material import KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CONTROL = "control-static-rsa"


def other_nonce(original: Any) -> Any:
    def init(self: Any, cipher: Any, keys: Any) -> None:
        original(self, cipher, keys._replace(iv=bytes(len(keys.iv))))

    return init


def stuck_at_the_first_record(original: Any) -> Any:
    def open_run(self: Any, view: memoryview, *rest: Any) -> Any:
        self.sequence = 0
        return original(self, view, *rest)

    return open_run


class OtherAdditionalData:
    """An AEAD that authenticates something else beside the ciphertext."""

    def __init__(self, aead: Any) -> None:
        self._aead = aead

    def decrypt(self, nonce: bytes, data: Any, additional: Any) -> bytes:
        return self._aead.decrypt(nonce, data, bytes(additional) + b"\0")

    def decrypt_into(self, nonce: bytes, data: Any, additional: Any, buffer: Any) -> int:
        return self._aead.decrypt_into(nonce, data, bytes(additional) + b"\0", buffer)


class NeverOpens:
    """An AEAD that opens nothing."""

    def decrypt(self, *_arguments: Any) -> bytes:
        raise InvalidTag

    def decrypt_into(self, *_arguments: Any) -> int:
        raise InvalidTag


def with_label(old: bytes, new: bytes) -> Callable[[Any], Any]:
    """Change one label of the key schedule."""

    def change(original: Any) -> Any:
        def derive(hash_name: str, secret: bytes, label: bytes, *rest: Any) -> bytes:
            return original(hash_name, secret, new if label == old else label, *rest)

        return derive

    return change


def always(value: Any) -> Callable[[Any], Any]:
    """Return the same whatever happens."""
    return lambda _original: lambda *_arguments, **_named: value


def without_ephemeral(kind: type) -> Callable[[Any], Any]:
    """Ignore ephemeral keys of one kind."""

    def change(original: Any) -> Any:
        def of(self: Any, public: bytes) -> Any:
            key = original(self, public)
            return None if isinstance(key, kind) else key

        return of

    return change


def without_deleted_keys(original: Any) -> Any:
    return lambda connection, keyring, info: (
        () if info.deleted_at else original(connection, keyring, info)
    )


def newest_versions_alone(original: Any) -> Any:
    def versions(connection: Any, keyring: Any, info: Any) -> Any:
        return [key for key in original(connection, keyring, info) if key.version == info.version]

    return versions


def never_forgets(original: Any) -> Any:
    """Keep all secrets that this process was ever given."""
    known = KeyLog()

    def init(self: Any, stolen: Any, *rest: Any, **named: Any) -> None:
        keys = stolen if isinstance(stolen, KeyMaterial) else KeyMaterial.of(stolen)
        known.add(keys.key_log)
        original(self, replace(keys, key_log=known), *rest, **named)

    return init


def one_octet_other(original: Any) -> Any:
    def found(stream: bytes) -> bytes:
        payload = original(stream)
        return payload[:-1] + bytes([payload[-1] ^ 1]) if payload else payload

    return found


def of_session(name: str) -> Callable[[Any], Any]:
    """Attack the recording of one session, whichever is meant."""
    return lambda original: (
        lambda directory, _session, *rest, **named: original(directory, name, *rest, **named)
    )


def cells(keep: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Leave out cells."""

    def change(original: Any) -> Any:
        def evaluate(*arguments: Any, **named: Any) -> Any:
            thefts, found = original(*arguments, **named)
            return thefts, tuple(cell for cell in found if keep(cell))

        return evaluate

    return change


def without_theft(name: str) -> Callable[[Any], Any]:
    """Leave out a row."""

    def change(original: Any) -> Any:
        def evaluate(*arguments: Any, **named: Any) -> Any:
            thefts, found = original(*arguments, **named)
            return (
                tuple(theft for theft in thefts if theft.name != name),
                tuple(cell for cell in found if cell.stolen != name),
            )

        return evaluate

    return change


def closed_with_bytes(original: Any) -> Any:
    def evaluate(*arguments: Any, **named: Any) -> Any:
        thefts, found = original(*arguments, **named)
        return thefts, tuple(
            msgspec.structs.replace(cell, recovered_bytes=1) if cell.observed == "closed" else cell
            for cell in found
        )

    return evaluate


def with_part(part: str) -> Callable[[Any], Any]:
    """Say of every cell that so much of the session was to open."""

    def change(original: Any) -> Any:
        def evaluate(*arguments: Any, **named: Any) -> Any:
            thefts, found = original(*arguments, **named)
            return thefts, tuple(msgspec.structs.replace(cell, part=part) for cell in found)

        return evaluate

    return change


def without_shown(kind: str) -> Callable[[Any], Any]:
    """Let a kind of theft not show what it is."""

    def change(original: Any) -> Any:
        def evaluate(*arguments: Any, **named: Any) -> Any:
            thefts, found = original(*arguments, **named)
            return tuple(
                msgspec.structs.replace(theft, shown="") if theft.name.startswith(kind) else theft
                for theft in thefts
            ), found

        return evaluate

    return change


def key_of_another_server(original: Any) -> Any:
    """Steal the key of a server that nobody spoke to, beside the one that opens the control."""

    def read(directory: Path, row: Any) -> Any:
        stolen = original(directory, row)
        if row.name != "server-key":
            return stolen
        keys = [
            ec.generate_private_key(ec.SECP256R1())
            if isinstance(key, ec.EllipticCurvePrivateKey)
            else key
            for key in stolen.server_private_keys
        ]
        return replace(stolen, server_private_keys=tuple(keys))

    return read


def keys_of_no_authority(original: Any) -> Any:
    """Take other keys of the store for those of the CAs."""
    names = {"root": "rotated", "rotated": "root", "issuing": "deleted", "deleted": "issuing"}
    return lambda *given: tuple(
        key._replace(name=names.get(key.name, key.name)) for key in original(*given)
    )


def stolen_from_elsewhere(original: Any) -> Any:
    def evaluate(*arguments: Any, **named: Any) -> Any:
        thefts, found = original(*arguments, **named)
        return tuple(
            msgspec.structs.replace(theft, files=(*theft.files, "stolen/elsewhere"))
            if theft.name == "harvest-ml-kem"
            else theft
            for theft in thefts
        ), found

    return evaluate


def judging(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change what is judged, by name."""

    def change(original: Any) -> Any:
        def judge(*arguments: Any, **named: Any) -> Any:
            for name, alter in changes.items():
                named[name] = alter(named[name])
            return original(*arguments, **named)

        return judge

    return change


def less(*names: str) -> Callable[[Any], Any]:
    """Leave out entries of these names."""
    return lambda entries: tuple(entry for entry in entries if entry.name not in names)


def without_kind(kind: str) -> Callable[[Any], Any]:
    return lambda census: {
        name: tally for name, tally in census.items() if not name.startswith(kind)
    }


def another_opens(_original: Any) -> Any:
    """Give an opinion that something opened which ours left closed."""
    opinion = Opinion(
        session="tls13-x25519",
        stolen="server-key",
        observed="opened",
        recovered_bytes=1,
    )
    return lambda *_arguments, **_named: SecondOpinion(
        program="tshark", version="4.0.0", opinions=(opinion,)
    )


OWN_SECRETS = "tls13-x25519 was not opened by its own secrets"
CONTROL_CLOSED = f"{CONTROL} was not opened by its own secrets"
OWN_KEY = "told-x25519 was not opened by its own ephemeral key"
NOBODY_EXPECTED = "opened, expected closed"
EVALUATE = "interop.proof.experiment:evaluate"
JUDGE = "interop.proof.experiment:_judge"
ASK = "interop.proof.second_opinion:ask"
OPENER_13, OPENER_12 = (
    "interop.wire.protection:TLS13Opener",
    "interop.wire.protection:TLS12AEADOpener",
)
EPHEMERAL = "interop.wire.groups:EphemeralKeys.of"
VERSIONS_IN_STORE = "certs.keystore.hazmat:_versions_of"

ATTACKERS = (
    Mutant("wrong nonce", f"{OPENER_13}.__init__", other_nonce, OWN_SECRETS),
    Mutant("stuck sequence number", f"{OPENER_13}.open_run", stuck_at_the_first_record,
        OWN_SECRETS),
    Mutant("wrong additional data on TLS 1.3", "interop.wire.protection:_aead",
        lambda original: lambda *given: OtherAdditionalData(original(*given)), OWN_SECRETS),
    Mutant("wrong additional data on TLS 1.2", "interop.wire.protection:_aead",
        lambda original: lambda *given: OtherAdditionalData(original(*given)), CONTROL_CLOSED),
    Mutant("a decryptor that always fails", "interop.wire.protection:_aead",
        always(NeverOpens()), "no control was opened by server-key"),
    Mutant("nothing of TLS 1.2 is opened", f"{OPENER_12}.open", always(None), CONTROL_CLOSED),
    Mutant("nothing of TLS 1.3 is opened", f"{OPENER_13}.open", always(None), OWN_SECRETS),
    Mutant("wrong label of the write key", "interop.wire.key_schedule:expand_label",
        with_label(b"key", b"kez"), OWN_SECRETS),
    Mutant("wrong label of the IV", "interop.wire.key_schedule:expand_label",
        with_label(b"iv", b"vi"), OWN_SECRETS),
    Mutant("wrong label of the salt", "interop.wire.key_schedule:expand_label",
        with_label(b"derived", b"Derived"), OWN_KEY),
    Mutant("wrong label of the handshake secret", "interop.wire.tls13_secrets:derive_secret",
        with_label(b"s hs traffic", b"c hs traffic"), OWN_KEY),
    Mutant("wrong label of the traffic secret", "interop.wire.tls13_secrets:derive_secret",
        with_label(b"c ap traffic", b"s ap traffic"), OWN_KEY),
    Mutant("a main secret of nothing", "interop.wire.tls12_secrets:_main_secret",
        always(bytes(48)), "no control was opened by server-key"),
    Mutant("server keys ignored", "interop.wire.material:KeyMaterial.rsa_keys", always(()),
        "no control was opened by key-store"),
    Mutant("key logs ignored", "interop.wire.key_log:KeyLog.__getitem__",
        always({}), OWN_SECRETS),
    Mutant("ephemeral keys ignored", EPHEMERAL, always(None), "no session was opened by harvest"),
    Mutant("x25519 alone taken for a key", EPHEMERAL, without_ephemeral(ec.EllipticCurvePrivateKey),
        "told-secp256r1 was not opened by its own ephemeral key"),
    Mutant("ML-KEM keys ignored", EPHEMERAL, without_ephemeral(mlkem.MLKEM768PrivateKey),
        "told-x25519mlkem768 was not opened by its own ephemeral key"),
    Mutant("deleted keys ignored", VERSIONS_IN_STORE, without_deleted_keys,
        "no control was opened by key-store"),
    Mutant("earlier versions ignored", VERSIONS_IN_STORE, newest_versions_alone,
        "no control was opened by key-store"),
    Mutant("everything is said to open", "interop.wire.session:TLSSession.opened",
        always(value=True),
        f"tls13-x25519 with server-key stolen: {NOBODY_EXPECTED}"),
    Mutant("nothing is said to open", "interop.proof.compromise:attack_recording",
        lambda original: lambda directory, session, _stolen, **named: original(
            directory, session, KeyMaterial(), **named), CONTROL_CLOSED),
    Mutant("what was once known is never forgotten", "interop.proof.attacker:Attacker.__init__",
        never_forgets, f"tls13-x25519 with session-secrets:{CONTROL} stolen: {NOBODY_EXPECTED}"),
    Mutant("one octet is another", "interop.proof.compromise:payload_in", one_octet_other,
        f"{CONTROL} with server-key stolen: opened, but not byte for byte"),
    Mutant("one octet is missing", "interop.proof.compromise:payload_in",
        lambda original: lambda stream: original(stream)[:-1], "opened, but not byte for byte"),
    Mutant("another session's bytes are reported", "interop.proof.compromise:attack_recording",
        of_session(CONTROL), f"tls13-x25519 with server-key stolen: {NOBODY_EXPECTED}"),
    Mutant("bytes of what stayed closed", EVALUATE, closed_with_bytes,
        "closed, yet bytes were recovered"),
    Mutant("a cell is skipped", EVALUATE,
        cells(lambda c: (c.session, c.stolen) != ("tls13-x25519", "server-key")),
        "tls13-x25519 with server-key stolen was not tried"),
    Mutant("a session is skipped", EVALUATE, cells(lambda c: c.session != "told-x25519"),
        "told-x25519 with harvest stolen was not tried"),
    *(
        Mutant(f"{name} is not stolen", EVALUATE, without_theft(name), said)
        for name, said in (
            ("server-key", "with server-key stolen was not tried"),
            ("key-store", "no control was opened by key-store"),
            ("ca-keys", "ca-keys was not stolen"),
            ("harvest", "harvest was not stolen"),
            ("harvest-ml-kem", "harvest-ml-kem was not stolen"),
            ("client-key", "client-key was not stolen"),
            ("ticket-key:tickets", "ticket-key:tickets was not stolen"),
            ("pre-shared-key:ticket-tls13", "pre-shared-key:ticket-tls13 was not stolen"),
            ("exporter-secret:told-x25519", "no exporter-secret of any session was stolen"),
            ("traffic-secret:told-key-update", "no traffic-secret of any session was stolen"),
            ("later-traffic-secret:told-key-update",
                "no later-traffic-secret of any session was stolen"),
            ("ephemeral-key:told-x25519", "ephemeral-key:told-x25519 was not stolen"),
            ("session-secrets:tls13-x25519", "with session-secrets:tls13-x25519 stolen was not"),
        )
    ),
    Mutant("ticket keys ignored", "interop.wire.tickets:TicketKey.open", always(None),
        "ticket-tls12 with ticket-key:tickets stolen: closed, expected opened"),
    Mutant("pre-shared keys ignored", "interop.wire.tls13_secrets:find_psk", always(None),
        "ticket-tls13-psk_ke with pre-shared-key:ticket-tls13 stolen: closed, expected opened"),
    Mutant("keys are never updated", "interop.wire.tls13_epochs:next_traffic_secret",
        lambda _original: lambda _hash_name, secret: secret,
        "told-key-update with traffic-secret:told-key-update stolen: closed, expected opened"),
    Mutant("nothing is learned", "interop.wire.learned:LearnedSecrets.learn_ticket", always(None),
        "ticket-tls13-psk_ke with ephemeral-key:ticket-tls13 stolen: closed, expected opened"),
    Mutant("a ticket is learned from its issuer alone",
        "interop.wire.tls12_secrets:Handshake.shown_ticket", always(b""),
        "ticket-tls12 with session-secrets:ticket-tls12-resumed stolen: closed, expected opened"),
    Mutant("all is 0-RTT data", EVALUATE, with_part("0-RTT data"),
        "opened, and more than 0-RTT data"),
    Mutant("0-RTT data are all", EVALUATE, with_part(""), "opened, and the request alone"),
    *(
        Mutant(f"{kind} shows nothing", EVALUATE, without_shown(kind), f"nothing shows that {kind}")
        for kind in ("client-key", "pre-shared-key:mutual-tls-upload", "exporter-secret",
            "later-traffic-secret")
    ),
    Mutant("the key of another server", "interop.proof.thefts:_read", key_of_another_server,
        "nothing shows that server-key belongs to the certificates that servers showed"),
    Mutant("the keys of no CA", "interop.proof.thefts:_keys_of_store", keys_of_no_authority,
        "nothing shows that ca-keys belongs to the certificates that servers showed"),
    Mutant("a theft of unknown origin", EVALUATE, stolen_from_elsewhere,
        "nothing shows that harvest-ml-kem is what it says: it opened nothing"),
    Mutant("another program opens what ours does not", ASK,
        another_opens, "tls13-x25519 with server-key stolen: tshark recovered 1 bytes of the "
        "payload, and our attacker 0"),
)  # fmt: skip

LEFT_OUT = (
    Mutant("the weak session", JUDGE, judging(sessions=less(CONTROL)),
        "no static RSA session was recorded"),
    Mutant("TLS 1.2", JUDGE, judging(sessions=less("tls12-ecdhe", "s_client-tls12")),
        "no TLS 1.2 ECDHE session was recorded"),
    Mutant("hybrids", JUDGE, judging(sessions=lambda entries: tuple(
        each for each in entries if "MLKEM" not in (each.group or ""))),
        "no TLS 1.3 X25519MLKEM768 session was recorded"),
    Mutant("a told key", JUDGE, judging(sessions=less("told-secp256r1")),
        "no secp256r1 session with a stolen ephemeral key was recorded"),
    Mutant("a session before one that resumed", JUDGE, judging(sessions=less("mutual-tls-upload")),
        "tls13-resumed: nothing tells which session it resumed"),
    *(
        Mutant(name, JUDGE, judging(sessions=less(name)), f"no {wanted} session was recorded")
        for name, wanted in (
            ("mutual-tls-upload", "mutual TLS"),
            ("tls13-resumed", "resumed TLS 1.3"),
            ("ticket-tls12", "TLS 1.2 (EC)DHE with a known ticket key"),
            ("ticket-tls12-resumed", "TLS 1.2 resumed with a known ticket key"),
            ("ticket-tls13", "TLS 1.3 (EC)DHE with a known ticket key"),
            ("ticket-tls13-psk_dhe_ke", "TLS 1.3 psk_dhe_ke with a known ticket key"),
            ("ticket-tls13-psk_ke", "TLS 1.3 psk_ke with a known ticket key"),
            ("ticket-tls13-0rtt", "TLS 1.3 0-RTT with a known ticket key"),
        )
    ),
    Mutant("a key that is used again", JUDGE, judging(sessions=less("reused-key-again")),
        "no client and no server used an ephemeral key twice"),
    Mutant("the census", JUDGE, judging(census=lambda _census: {"handshakes": 60}),
        "the census is empty"),
    *(
        Mutant(f"{kind} in the census", JUDGE, judging(census=without_kind(kind)),
            f"census: {kind}: 0 seen in")
        for kind in (
            "client_random", "server_random", "exporter", "main_secret",
            "client_handshake_traffic_secret", "server_handshake_traffic_secret",
            "server_traffic_secret_0", "exporter_secret", "client_key_share", "server_key_share",
        )
    ),
    # Without it, all handshakes are taken for TLS 1.2.
    Mutant("client_traffic_secret_0 in the census", JUDGE,
        judging(census=without_kind("client_traffic_secret_0")),
        "census: main_secret: 12 seen in 60 handshakes"),
    Mutant("handshakes of the census", JUDGE,
        judging(census=lambda census: census | {"handshakes": 10**6}),
        "census: client_random: 60 seen in 1,000,000 handshakes"),
    Mutant("a census of one handshake", JUDGE, judging(census=lambda census: {
        kind: Tally(1, 1) for kind in census} | {"handshakes": 1}),
        "census: fewer handshakes (1) than the 60 that can show a repetition"),
    *(
        Mutant(f"all but {count} {kind} of the census", JUDGE,
            judging(census=lambda census, kind=kind, count=count: census | {
                kind: Tally(count, count)}),
            f"census: {kind}: {count} seen, of which none can have come twice")
        for kind, count in (("psk", 1), ("ticket_identity", 0), ("server_key_share.mlkem1024", 1))
    ),
    Mutant("a value of the census that repeats", JUDGE,
        judging(census=lambda census: census | {"psk": Tally(4, 3)}),
        "census: 1 of 4 psk repeated"),
    Mutant("all replays", JUDGE, judging(replays=lambda _replays: ()), "nothing was replayed"),
    Mutant("one session's replays", JUDGE, judging(replays=lambda replays: tuple(
        each for each in replays if each.session != "tls13-x25519")),
        "tls13-x25519 was not replayed"),
    Mutant("the replay control", JUDGE, judging(replay_control=lambda control: Replay(
        session=control.session, attempts=0, executed=0, captures=())),
        "the replay control, a genuine session on the same server, did not execute"),
    Mutant("one of the genuine sessions", JUDGE, judging(replay_control=lambda control:
        msgspec.structs.replace(control, executed=control.executed - 1)),
        "the replay control, a genuine session on the same server, did not execute"),
)  # fmt: skip
