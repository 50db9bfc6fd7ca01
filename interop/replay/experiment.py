"""One endpoint under attack: records honest sessions, runs cases, and reads the count.

The order of every experiment is the same: read the count, attack, wait until the endpoint is done,
read the count again. What was executed in between is judged by what honest clients asked for in
between (`model.judge`). A premise that fails, an honest session that did not execute, a record that
never came by, makes the case invalid, not held.

Recordings are made once an endpoint, on first use, and each is checked when it is made: every
request in it was executed.
"""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final

import h11

from interop.errors import InteropError
from interop.replay.application import Responses
from interop.replay.cases import Live, Recorded, TicketTwice
from interop.replay.flights import Role
from interop.replay.interference import Action, Interference, Interferer
from interop.replay.middle import Middle, deliver
from interop.replay.model import Outcome, Verdict, judge, judge_total
from interop.replay.servers import describe_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interop.http_exchange import ByteStream
    from interop.peers.early_data import EarlyDataClient, Ticket
    from interop.replay.application import Request
    from interop.replay.cases import Case
    from interop.replay.flights import Flight
    from interop.replay.targets import Count, Target

__all__ = ["HONEST_SESSION", "Experiment"]

HONEST_SESSION: Final = "honest-session"
_UPLOAD_BYTES: Final = 40 * 1024  # three records
_RECEIVE_BYTES: Final = 64 * 1024
_ANY_UPLOAD: Final = Live(Interference(Role.REQUEST, Action.DELAY), upload=True)
_HONEST_BASIS: Final = "the endpoint is up, and its counter counts"

Flights = tuple["Flight", "Flight"]


class _NotApplicableError(Exception):
    """A case that this endpoint gives no occasion for; the text says why."""


class _PremiseFailedError(Exception):
    """What a case builds on did not come about; the text says what."""


class _LateExecutionError(Exception):
    """More was executed since the last look than honest clients still had to come."""


class Experiment:
    """Attacks one target, case by case."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._recordings: dict[str, Flights] = {}
        self._last_total: int | None = None
        self._outstanding = 0

    def run(self, case: Case) -> Outcome:
        """Carry out one case."""
        verdict = Verdict.NOT_APPLICABLE
        reason = case.excluded.get(self._target.framing, "")
        try:
            if not reason:
                return self._carry_out(case)
        except _NotApplicableError as error:
            reason = str(error)
        except _LateExecutionError as error:
            verdict, reason = Verdict.REPLAYED, str(error)
        except (_PremiseFailedError, InteropError, OSError) as error:
            verdict, reason = Verdict.INVALID, str(error)
            # Whatever is still under way must not be taken for the next case's doing.
            with contextlib.suppress(InteropError, OSError):
                self._target.settle()
        return self._outcome(case, verdict, reason)

    def _carry_out(self, case: Case) -> Outcome:
        match case.experiment:
            case Recorded() as recorded:
                return self._run_recorded(case, recorded)
            case Live() as live:
                return self._run_live(case, live)
            case TicketTwice():
                return self._run_ticket_twice(case)

    def run_honest_session(self) -> Outcome:
        """See that the endpoint still serves, and that what is executed there is counted."""
        verdict, reason = Verdict.HELD, ""
        before = after = None
        requests = self._requests()
        try:
            before = self._open_account().total
            self._record(requests)
            after = self._target.count().total
        except _LateExecutionError as error:
            verdict, reason = Verdict.REPLAYED, str(error)
        except (_PremiseFailedError, InteropError, OSError) as error:
            verdict, reason = Verdict.INVALID, str(error)
        return Outcome(
            target=self._target.name,
            case=HONEST_SESSION,
            what=None,
            how=None,
            control=False,
            expected="held",
            verdict=verdict if before is not None or reason else Verdict.NOT_COUNTED,
            executed_before=before,
            executed_after=after,
            honest=len(requests),
            reason=reason,
            basis=_HONEST_BASIS,
        )

    # The account: what was executed between two looks is somebody's doing

    def _open_account(self) -> Count:
        """Read the count before an experiment or a recording.

        Since the last look only what honest clients had asked for, and was not counted yet, may
        have come. Anything else is a replay that took its time.
        """
        count = self._target.count()
        if count.total is not None and self._last_total is not None:
            late = count.total - self._last_total - self._outstanding
            self._last_total, self._outstanding = count.total, 0
            if late > 0:
                raise _LateExecutionError(f"{late} executions came late, after an earlier case")
        return count

    def _close_account(self, before: Count, honest: Sequence[Request]) -> Count:
        """Read the count once the endpoint is done, and remember what is outstanding."""
        after = self._target.count()
        if before.total is not None and after.total is not None:
            self._last_total = after.total
            self._outstanding = max(len(honest) - (after.total - before.total), 0)
        return after

    # The three kinds of experiment

    def _run_recorded(self, case: Case, recorded: Recorded) -> Outcome:
        target = self._target
        first, second = self._recording(recorded.source)
        before = self._open_account()
        seen = [
            str(deliver(target.dial, delivery, deadline_seconds=target.deadline_seconds))
            for delivery in recorded.deliver(first, second)
            if any(delivery)
        ]
        if not seen:
            raise _PremiseFailedError("the recording holds nothing to send")
        return self._judged(case, before, honest=(), seen=seen)

    def _run_live(self, case: Case, live: Live) -> Outcome:
        target = self._target
        if live.upload and target.method == "GET":
            raise _NotApplicableError("requests by GET have no body: choose --method PUT or POST")
        earlier, _ = self._recording("upload" if live.upload else "session")
        interferer = Interferer(live.interference, earlier)
        requests = self._requests(live)
        before = self._open_account()
        end = self._converse_through(Middle(target.dial, target.framing, interferer), requests)
        if not interferer.applied:
            target.settle()
            self._close_account(before, requests)
            raise _PremiseFailedError(
                f"no {live.interference.role} came by that this could be done to"
            )
        return self._judged(case, before, honest=requests, seen=[f"the client {end}"])

    def _run_ticket_twice(self, case: Case) -> Outcome:
        target = self._target
        client, ticket = self._ticket()
        requests = [target.request(), target.request()]
        before = self._open_account()
        resumed = 0
        for request in requests:
            with (
                Middle(target.dial, target.framing) as middle,
                client.connect(middle.address, ticket=ticket) as session,
            ):
                resumed += session.resumed
                _converse(session, [request], target.method)
        seen = [f"the ticket was accepted {resumed} times of {len(requests)}"]
        return self._judged(case, before, honest=requests, seen=seen)

    def _judged(
        self, case: Case, before: Count, *, honest: Sequence[Request], seen: Sequence[str]
    ) -> Outcome:
        """Wait for the endpoint, read the count, and judge what was executed since `before`."""
        ends = self._target.settle()
        after = self._close_account(before, honest)
        verdict, reason = _judge(before, after, honest)
        # A control has opened when something was executed, and not before.
        reached = after.connections != before.connections and not self._target.control
        if verdict is Verdict.HELD and not honest and reached:
            verdict, reason = Verdict.REPLAYED, "a replayed handshake reached the application"
        words = dict.fromkeys([*(f"the server {end}" for end in ends), *seen])
        return self._outcome(
            case,
            verdict,
            reason,
            before=before.total,
            after=after.total,
            honest=len(honest),
            reaction="; ".join(words),
        )

    def _outcome(
        self,
        case: Case,
        verdict: Verdict,
        reason: str,
        *,
        before: int | None = None,
        after: int | None = None,
        honest: int = 0,
        reaction: str = "",
    ) -> Outcome:
        target = self._target
        return Outcome(
            target=target.name,
            case=case.name,
            what=case.what,
            how=case.how,
            control=target.control,
            expected="replayed" if target.control else "held",
            verdict=verdict,
            executed_before=before,
            executed_after=after,
            honest=honest,
            reaction=reaction,
            reason=reason,
            basis=case.basis.get(target.framing, ""),
        )

    # Honest sessions

    def _requests(self, live: Live | None = None) -> list[Request]:
        """Make the requests of a session; one that waits in vain for an answer is closed instead.

        Where a request is left out, its client waits for as many answers as it sent requests.
        """
        if live is not None and live.upload:
            return [self._target.request(secrets.token_bytes(_UPLOAD_BYTES))]
        close = live is not None and (
            live.interference.role is Role.REQUEST and live.interference.action is Action.DROP
        )
        return [self._target.request(close=close and last) for last in (False, False, True)]

    def _recording(self, source: str) -> Flights:
        """Return two recorded flights of a kind, made on first use."""
        if source not in self._recordings:
            makers: dict[str, Callable[[], Flight]] = {
                "session": lambda: self._record(self._requests()),
                "upload": lambda: self._record(self._requests(_ANY_UPLOAD)),
                "resumed": self._record_resumed,
                "early data": self._record_early_data,
            }
            self._recordings[source] = makers[source](), makers[source]()
        return self._recordings[source]

    def _record(self, requests: Sequence[Request]) -> Flight:
        """Record an honest session, whose requests must have been executed as asked."""
        before = self._open_account()
        middle = Middle(self._target.dial, self._target.framing)
        end = self._converse_through(middle, requests)
        self._require_executed(before, requests, end)
        return middle.flight

    def _record_resumed(self) -> Flight:
        client, ticket = self._ticket()
        requests = self._requests()
        before = self._open_account()
        with (
            Middle(self._target.dial, self._target.framing) as middle,
            client.connect(middle.address, ticket=ticket) as session,
        ):
            resumed = session.resumed
            _converse(session, requests, self._target.method)
        self._require_executed(before, requests, "")
        if not resumed:
            self._require_not_meant_to("resume")
        return middle.flight

    def _record_early_data(self) -> Flight:
        """Record a session whose first requests went as 0-RTT data, allowed or not."""
        client, ticket = self._ticket(must_resume=False)
        if not ticket.max_early_data_bytes:
            ticket = ticket.allowing_early_data()
        target = self._target
        early, late = [target.request(), target.request()], target.request()
        before = self._open_account()
        with Middle(target.dial, target.framing) as middle:
            pieces = tuple(request.encoded for request in early)
            with client.connect(middle.address, ticket=ticket, early_data=pieces) as session:
                _converse(session, [late], target.method)
        if not middle.flight.of(Role.EARLY_DATA):
            raise _PremiseFailedError("the client's 0-RTT data were not seen on the wire")
        target.settle()
        after = self._close_account(before, [*early, late])
        if before.executed is not None and after.executed is not None:
            executed = after.executed[len(before.executed) :]
            taken = [request for request in early if request.execution in executed]
            if executed != tuple(request.execution for request in [*taken, late]):
                raise _PremiseFailedError("an honest session with 0-RTT data went wrong")
        return middle.flight

    def _ticket(self, *, must_resume: bool = True) -> tuple[EarlyDataClient, Ticket]:
        """Return a fresh ticket of the target's."""
        target = self._target
        if target.tickets is None:
            raise _NotApplicableError("its clients resume nothing")
        if must_resume and target.resumes is False:
            raise _NotApplicableError("its policy resumes nothing: a ticket is worth nothing there")
        requests = [target.request()]
        before = self._open_account()
        with (
            Middle(target.dial, target.framing) as middle,
            target.tickets.connect(middle.address) as session,
        ):
            _converse(session, requests, target.method)
            ticket = session.ticket
        self._require_executed(before, requests, "")
        if ticket is None:
            raise _NotApplicableError("the server sends no tickets")
        return target.tickets, ticket

    def _converse_through(self, middle: Middle, requests: Sequence[Request]) -> str:
        """Let an honest client send its requests through a middle; say how it ended."""
        failure: Exception | None = None
        with middle:
            try:
                with self._target.connect(middle.address) as connection:
                    _converse(connection, requests, self._target.method)
            except (InteropError, OSError) as error:
                failure = error
        return describe_end(failure)

    def _require_executed(self, before: Count, requests: Sequence[Request], end: str) -> None:
        """Raise unless the requests were executed as asked, where that can be counted."""
        self._target.settle()
        after = self._close_account(before, requests)
        if before.executed is not None and after.executed is not None:
            wanted = tuple(request.execution for request in requests)
            if after.executed[len(before.executed) :] != wanted:
                raise _PremiseFailedError(f"an honest session was not executed as asked: it {end}")
        elif before.total is not None and after.total is not None:
            if after.total - before.total != len(requests):
                raise _PremiseFailedError(
                    f"{len(requests)} honest requests were counted as {after.total - before.total}"
                )
        elif end and end != describe_end(None):
            raise _PremiseFailedError(f"an honest session failed: it {end}")

    def _require_not_meant_to(self, what: str) -> None:
        if self._target.resumes:
            raise _PremiseFailedError(f"the server did not {what}, though its policy says so")
        raise _NotApplicableError(f"the server does not {what}")


def _converse(connection: ByteStream, requests: Sequence[Request], method: str) -> None:
    """Send requests, each in records of its own, and read until all are answered or the end."""
    for request in requests:
        connection.sendall(request.encoded)
    responses = Responses(method)
    try:
        while responses.complete < len(requests):
            data = connection.recv(_RECEIVE_BYTES)
            responses.receive(data)
            if not data:
                break
    except h11.RemoteProtocolError as error:
        raise InteropError(f"the answer is not HTTP: {error}") from error


def _judge(before: Count, after: Count, honest: Sequence[Request]) -> tuple[Verdict, str]:
    if before.executed is not None and after.executed is not None:
        executed = after.executed[len(before.executed) :]
        return judge([request.execution for request in honest], executed)
    if before.total is not None and after.total is not None:
        return judge_total(len(honest), after.total - before.total)
    return Verdict.NOT_COUNTED, ""
