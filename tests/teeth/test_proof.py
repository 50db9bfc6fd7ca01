"""`pfs prove` with something broken in it never says *proved*.

Each row of the tables breaks one thing: the attacker, an endpoint, a control that is left out. The
real harness runs with it, on real recordings, and must refute, or refuse to judge, for the reason
that the row names. Each sentence that the harness can say has a row.
"""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from mutation import Mutant, in_force, sentences_of

from interop.capture.recorder import RecordingRelay
from interop.census.conditions import Batch, Condition
from interop.census.values import Tally
from interop.errors import InteropError
from interop.identity import SERVER_NAME, issue_identity
from interop.peers.faulty import Fault, FaultyRecipe
from interop.progress import SilentProgress
from interop.proof import experiment, layout, model, opinions
from interop.proof.application import request_bytes
from interop.proof.model import Replay
from interop.proof.opinions import Opinion, SecondOpinion
from interop.proof.scenarios import Scenario
from interop.proof.servers import Identity
from interop.proof.target import OwnServer
from interop.replay.controls import RecordStream, unprotected_server
from interop.wire.key_log import KeyLog
from interop.wire.material import KeyMaterial
from transport import TLSSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Evidence

CONTROL = "control-static-rsa"


# Broken attackers


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
    Mutant("the census", JUDGE, judging(census=lambda _census: {"handshakes": 24}),
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
        "census: main_secret: 7 seen in 24 handshakes"),
    Mutant("handshakes of the census", JUDGE,
        judging(census=lambda census: census | {"handshakes": 10**6}),
        "census: client_random: 24 seen in 1,000,000 handshakes"),
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


def refutes(found: tuple[str, tuple[str, ...]], said: str) -> None:
    """Check that a run was not proved, and for the reason that was foreseen."""
    verdict, sentences = found
    assert verdict in {"refuted", "invalid"}
    assert any(said in sentence for sentence in sentences), sentences


def tells_otherwise(mutant: Mutant) -> bool:
    """Say whether a mutant attacks as ever, and then tells of it otherwise."""
    return mutant.place in {EVALUATE, ASK}


def test_without_a_mutant_it_is_proved(evidence: Evidence) -> None:
    assert (evidence.report.verdict, evidence.report.failures) == ("proved", ())
    assert evidence.judge() == ("proved", ())


@pytest.mark.parametrize("mutant", [m for m in ATTACKERS if not tells_otherwise(m)], ids=repr)
def test_a_broken_attacker_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", [m for m in ATTACKERS if tells_otherwise(m)], ids=repr)
def test_an_attacker_that_tells_otherwise_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge(ask_tshark=mutant.place == ASK)
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", LEFT_OUT, ids=repr)
def test_what_is_left_out_never_proves(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


# Broken endpoints, and a stage that does not do what it should


def ours_is(kind: Any) -> Callable[[Any], Any]:
    """Let a weak server pass for one of ours, in the session that is named after ECDHE."""

    def change(original: Any) -> Any:
        def record(self: Any, *rest: Any) -> Any:
            self._servers["broken"] = replace(self._servers[kind], title="pfs (blocking)")
            weak = Scenario("tls12-ecdhe", kind, "broken", "1.2")  # type: ignore[arg-type]
            self._scenarios = [weak if s.name == weak.name else s for s in self._scenarios]
            return original(self, *rest)

        return record

    return change


def of_the_session_before(original: Any) -> Any:
    """Log the secrets of the session before instead of this one's."""
    kept: list[bytes] = [b""]

    def keep(self: Any, name: str, *rest: Any) -> None:
        original(self, name, *rest)
        path = self._directory / f"stolen/{name}.keylog"
        kept.append(path.read_bytes())
        path.write_bytes(kept[-2])

    return keep


def of_all_sessions(original: Any) -> Any:
    """Log the secrets of all of a server's sessions with each."""
    return lambda self, name, server, _known: original(self, name, server, 0)


def in_plain_records(original: Any) -> Any:
    """Let both ends of a session leave out TLS, all but its framing."""

    def record(self: Any, scenario: Any, **named: Any) -> Any:
        if scenario.name != "tls13-x25519":
            return original(self, scenario, **named)
        with (
            unprotected_server() as server,
            RecordingRelay(server.address, named["capture"]) as relay,
            socket.create_connection(relay.address, 20) as connection,
        ):
            stream = RecordStream(connection)
            stream.sendall(request_bytes(self._payload, host=SERVER_NAME))
            connection.shutdown(socket.SHUT_WR)
            stream.recv(1000)
        return {}

    return record


def plain_after_the_handshake(original: Any) -> Any:
    """Send the request in the clear, in records that look as if they were protected."""

    def send(connection: Any, payload: bytes, *, host: str) -> None:
        # The session that gets a ticket is spared, for without one the run would end.
        if not isinstance(connection, TLSSocket) or connection.negotiated.group != "x25519":
            original(connection, payload, host=host)
            return
        with (
            suppress(OSError),  # the server does not like it
            socket.socket(fileno=os.dup(connection.fileno())) as bare,
        ):
            RecordStream(bare).sendall(request_bytes(payload, host=host))
            bare.shutdown(socket.SHUT_WR)
            while bare.recv(1000):
                pass

    return send


def checks_nothing(_original: Any) -> Any:
    """Hand a connection to the application before its handshake."""
    return lambda self, connection: self.application.serve(connection)


def sends_nothing(original: Any) -> Any:
    """Record a connection on which nothing is replayed, in one manner of all."""

    def replay(flight: bytes, *, manner: str, server_address: Any, capture: Path) -> None:
        if manner != "paced":
            original(flight, manner=manner, server_address=server_address, capture=capture)
            return
        with RecordingRelay(server_address, capture) as relay:
            socket.create_connection(relay.address, 20).close()

    return replay


def with_fault(fault: Fault) -> Callable[[Any], Any]:
    """Take the census of a server with a seeded fault (`interop.peers.faulty`)."""

    def change(original: Any) -> Any:
        def take(handshakes: int, recipe: Any, sink: Any, *, progress: Any) -> Any:
            faulty = FaultyRecipe(
                recipe.certificates, recipe.private_key, recipe.server_name, fault
            )
            condition = Condition.ONE_CONTEXT
            if fault is Fault.CLONED_GENERATOR:
                condition = Condition.FORKED
            batches = [Batch(condition, 0, handshakes)]
            return original(handshakes, faulty, sink, workers=1, batches=batches, progress=progress)

        return take

    return change


STAGE = "interop.proof.stage:Stage"
CENSUS = "interop.proof.experiment:take_census"
ENDPOINTS = (
    Mutant("static RSA under another name", f"{STAGE}.record", ours_is("static-rsa"),
        "tls12-ecdhe: a server of ours without forward secrecy (TLS_RSA_WITH_AES_128_GCM_SHA256)"),
    Mutant("a ticket on TLS 1.2", f"{STAGE}.record", ours_is("tickets"),
        "tls12-ecdhe: a server of ours without forward secrecy (TLS_ECDHE"),
    Mutant("a key log of another session", f"{STAGE}._keep_secrets", of_the_session_before,
        OWN_SECRETS),
    Mutant("a key log of all sessions", f"{STAGE}._keep_secrets", of_all_sessions,
        f"tls12-ecdhe with session-secrets:tls13-x25519 stolen: {NOBODY_EXPECTED}"),
    Mutant("no encryption after the handshake", "interop.proof.recording:send_payload",
        plain_after_the_handshake, OWN_SECRETS),
    Mutant("no TLS at all", "interop.proof.recording:Recorder.record", in_plain_records,
        "TLS sessions where one was recorded"),
    Mutant("a client that sends nothing", "interop.proof.recording:send_payload",
        always(None), "tls12-ecdhe: the capture holds no encrypted application data"),
    Mutant("an application that runs before the check",
        "interop.proof.endpoints:BlockingEndpoint._serve_checked", checks_nothing,
        "replays executed"),
    Mutant("an application that does not count",
        "interop.http_exchange:HTTPApplication.connections", always(0),
        "the replay control, a genuine session on the same server, did not execute"),
    Mutant("replays that send nothing", "interop.proof.stage:replay_flight", sends_nothing,
        "tls13-x25519: 1 of 4 replays were not sent"),
)  # fmt: skip
FAULTS = (
    Mutant("a reused ephemeral key", CENSUS, with_fault(Fault.REUSED_KEY),
        "census: 23 of 24 server_key_share.x25519 repeated"),
    Mutant("a cloned generator", CENSUS, with_fault(Fault.CLONED_GENERATOR),
        "server_key_share.x25519 repeated"),
    Mutant("a random of few bits", CENSUS, with_fault(Fault.REPEATED_RANDOM),
        "server_random repeated"),
    Mutant("a fixed exporter", CENSUS, with_fault(Fault.FIXED_EXPORTER),
        "census: 23 of 24 exporter repeated"),
)  # fmt: skip


def run(evidence: Evidence, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Run the whole proof, all but its census, of which the one before is taken."""

    def taken_before(_original: Any) -> Any:
        def take(directory: Path, *_rest: Any) -> Any:
            shutil.copytree(evidence.directory / "census", directory / "census", dirs_exist_ok=True)
            return evidence.report.census

        return take

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_take_census", taken_before(experiment._take_census))
        try:
            report, _ = experiment.prove(
                folder / "evidence",
                payload=evidence.payload,
                handshakes=evidence.report.handshakes,
                progress=SilentProgress(),
                ask_tshark=False,
            )
        except InteropError as error:
            return "invalid", (str(error),)
    return report.verdict, report.failures


@pytest.mark.parametrize("mutant", ENDPOINTS, ids=repr)
def test_a_broken_endpoint_never_proves(evidence: Evidence, tmp_path: Path, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = run(evidence, tmp_path)
    refutes(found, mutant.said)


def with_census(evidence: Evidence, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Take a census, and judge the recordings with it."""
    (folder / "census").mkdir()
    issued = issue_identity()
    identity = Identity(*[issued.credential] * 3, trust_anchors=issued.trust_anchors)
    handshakes = evidence.report.handshakes
    census = experiment._take_census(folder, handshakes, identity, SilentProgress())
    with in_force(JUDGE, judging(census=lambda _census: census)):
        return evidence.judge()


@pytest.mark.usefixtures("matrix_once")
@pytest.mark.parametrize("mutant", FAULTS, ids=repr)
def test_a_faulty_server_is_found_by_its_census(
    evidence: Evidence, tmp_path: Path, mutant: Mutant
) -> None:
    with in_force(mutant.place, mutant.change):
        found = with_census(evidence, tmp_path)
    refutes(found, mutant.said)


@pytest.mark.usefixtures("matrix_once")
def test_a_server_with_no_fault_is_not_accused_by_its_census(
    evidence: Evidence, tmp_path: Path
) -> None:
    with in_force(CENSUS, with_fault(Fault.NONE)):
        assert with_census(evidence, tmp_path) == ("proved", ())


# A run about somebody's own server: some of our sessions pass for the target's.


def about_a_target(*names: str, key: str = "server") -> Callable[[Any], Any]:
    """Let the run be about a server with a key of ours, and these be its sessions."""

    def change(original: Any) -> Any:
        def judge(directory: Path, *rest: Any, sessions: Any, **options: Any) -> Any:
            target = OwnServer(
                address=("127.0.0.1", 443),
                server_name="localhost",
                trust_anchors=issue_identity().trust_anchors,
                private_key=directory / layout.server_key_of(key),
            )
            sessions = tuple(
                msgspec.structs.replace(each, target=each.name in names) for each in sessions
            )
            return original(directory, *rest, sessions=sessions, target=target, **options)

        return judge

    return change


TARGETS = (
    Mutant("a target that nobody saw", JUDGE, about_a_target(),
        "no forward-secret session with 127.0.0.1:443 was recorded"),
    Mutant("a target that takes static RSA", JUDGE, about_a_target("tls13-x25519", CONTROL),
        "127.0.0.1:443 does TLS 1.2 without forward secrecy: static RSA"),
    Mutant("a target that gives out tickets", JUDGE, about_a_target("tls13-x25519", "ticket-tls12"),
        "gives out a ticket that holds the main secret"),
    Mutant("another key than the target's", JUDGE, about_a_target("tls13-x25519", key="control"),
        "nothing shows that target-key is what it says"),
)  # fmt: skip


@pytest.mark.parametrize("mutant", TARGETS, ids=repr)
def test_what_a_target_should_not_do_refutes(evidence: Evidence, mutant: Mutant) -> None:
    with in_force(mutant.place, mutant.change):
        found = evidence.judge()
    refutes(found, mutant.said)


def test_a_target_that_does_as_it_should_is_proved(evidence: Evidence) -> None:
    with in_force(JUDGE, about_a_target("tls12-ecdhe", "tls13-x25519")):
        assert evidence.judge() == ("proved", ())


def test_every_claim_has_a_mutant() -> None:
    claims = sentences_of(model, "_failures", "contradiction")
    claims |= sentences_of(opinions, "contradictions")
    said = {mutant.said for mutant in (*ATTACKERS, *LEFT_OUT, *ENDPOINTS, *FAULTS, *TARGETS)}
    assert len(claims) > 15
    assert {claim for claim in claims if not any(claim in each for each in said)} == set()
