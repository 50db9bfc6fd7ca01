"""HTTP of `pfs serve http`, bytes in and bytes out; and how commands read addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.applications import HTTPResponder
from transport.commands.addresses import parse_address
from transport.errors import APIMisuse

PAGE = b"the page\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_get_is_answered_and_the_connection_stays() -> None:
    responder = HTTPResponder(PAGE)
    for _ in range(3):
        assert responder.is_idle
        answer = responder.receive(GET)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n" + PAGE)
        assert not responder.closing


def test_bytes_may_come_one_at_a_time() -> None:
    responder = HTTPResponder(PAGE)
    for position in range(len(GET) - 1):
        assert responder.receive(GET[position : position + 1]) == b""
        assert not responder.is_idle
        assert responder.awaits_head
    assert responder.receive(GET[-1:]).startswith(b"HTTP/1.1 200 ")
    assert responder.is_idle


def test_pipelined_requests_are_answered_in_turn() -> None:
    answer = HTTPResponder(PAGE).receive(GET + GET.replace(b" / ", b" /other ") + GET[:20])
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 404 ") == 1


@pytest.mark.parametrize(
    ("request_", "status", "closing"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"200", False),
        (b"GET /?q=1 HTTP/1.1\r\nHost: a\r\n\r\n", b"200", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", b"405", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"200", True),
        (b"GET / HTTP/1.0\r\n\r\n", b"200", True),
        (b"GET / HTTP/1.1\r\n\r\n", b"400", True),
        (b"\x00\x01\x02\r\n\r\n", b"400", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000, b"431", True),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n" + b"a" * (1 << 21),
            b"413",
            True,
        ),
    ],
)
def test_each_kind_of_request(request_: bytes, status: bytes, closing: bool) -> None:  # noqa: FBT001 - a parameter
    responder = HTTPResponder(PAGE)
    answer = responder.receive(request_)
    assert answer.split(b" ", 2)[1] == status
    assert responder.closing is closing
    if request_.startswith(b"HEAD"):
        assert PAGE not in answer


def test_a_waiting_client_is_told_to_continue_once() -> None:
    responder = HTTPResponder(PAGE)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert responder.receive(head).startswith(b"HTTP/1.1 100 ")
    assert responder.receive(b"a") == b""
    assert responder.receive(b"b").startswith(b"HTTP/1.1 405 ")


def test_the_last_response_says_close() -> None:
    responder = HTTPResponder(PAGE)
    assert b"connection: close" in responder.receive(GET, last=True).lower()
    assert responder.closing


def test_a_late_head_gets_408_and_the_end_of_input_nothing() -> None:
    late = HTTPResponder(PAGE)
    late.receive(b"GET /")
    assert late.time_out().startswith(b"HTTP/1.1 408 ")
    ended = HTTPResponder(PAGE)
    assert ended.receive(b"") == b""
    assert ended.closing


@given(st.binary(max_size=2000))
def test_no_bytes_raise(data: bytes) -> None:
    responder = HTTPResponder(PAGE)
    responder.receive(data)
    if not responder.closing:
        responder.receive(b"")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8443", ("127.0.0.1", 8443)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104 - parsed, not bound
        ("[::1]:443", ("::1", 443)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":80", "a:", "a:b", "a:70000", "::1:443", "a:-1", "host"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(APIMisuse, match="not an address"):
        parse_address(text)


def test_a_default_port_makes_a_host_enough() -> None:
    assert parse_address("example.org", default_port=443) == ("example.org", 443)
    assert parse_address("[::1]", default_port=443) == ("::1", 443)
    assert parse_address("example.org:8443", default_port=443) == ("example.org", 8443)
