"""Caps, rates, deadlines and names, with times made up."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import APIMisuse
from transport.server_limits import (
    ConnectionLedger,
    DeadlineHeap,
    Limits,
    Refusal,
    TokenBucket,
    client_key,
)
from transport.server_names import NameTable, normalize_name


def test_a_bucket_allows_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(2.0, 3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.49)
    assert bucket.take(100.5)
    assert not bucket.take(100.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_goes_back_makes_no_tokens() -> None:
    bucket = TokenBucket(1.0, 1, now=100.0)
    assert bucket.take(100.0)
    assert not bucket.take(0.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_bucket_gives_more_than_burst_and_rate(
    rate: float, burst: int, gaps: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, now=0.0)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now)
    assert taken <= burst + rate * now + 1e-6


def test_the_caps_refuse_and_recover() -> None:
    limits = Limits(max_connections=3, max_connections_per_address=2)
    ledger = ConnectionLedger(limits, now=0.0)
    assert [ledger.admit(key, 0.0) for key in ("a", "a", "a")] == [
        None,
        None,
        Refusal.TOO_MANY_FROM_ADDRESS,
    ]
    assert ledger.admit("b", 0.0) is None
    assert ledger.admit("c", 0.0) is Refusal.TOO_MANY_CONNECTIONS
    ledger.release("a")
    assert ledger.admit("c", 0.0) is None
    assert ledger.open_connections == 3


def test_a_refused_client_uses_up_no_token() -> None:
    limits = Limits(max_connections_per_address=1, handshakes_per_second=1, handshake_burst=2)
    ledger = ConnectionLedger(limits, now=0.0)
    assert ledger.admit("greedy", 0.0) is None
    for _ in range(10):
        assert ledger.admit("greedy", 0.0) is Refusal.TOO_MANY_FROM_ADDRESS
    assert ledger.admit("other", 0.0) is None
    assert ledger.admit("third", 0.0) is Refusal.TOO_MANY_HANDSHAKES
    assert ledger.admit("third", 1.0) is None


def test_the_ledger_forgets_who_left() -> None:
    ledger = ConnectionLedger(Limits(), now=0.0)
    for number in range(1000):
        ledger.admit(str(number), 0.0)
    for number in range(1000):
        ledger.release(str(number))
    assert ledger.open_connections == 0
    assert not ledger._by_key


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("not:an:address", "not:an:address"),
    ],
)
def test_who_is_one_client(host: str, key: str) -> None:
    assert client_key(host) == key


@pytest.mark.parametrize("field", ["max_connections", "idle_timeout_seconds", "drain_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(field: str, value: float) -> None:
    with pytest.raises(APIMisuse, match=field):
        Limits(**{field: value})  # type: ignore[arg-type] # any field


def test_deadlines_come_out_in_their_order_and_not_before() -> None:
    heap: DeadlineHeap[str] = DeadlineHeap(lambda _item: False)
    for due, item in [(3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a2")]:
        heap.push(due, item)
    assert heap.pop_due(0.5) is None
    taken = list(itertools.takewhile(lambda item: item, (heap.pop_due(2.0) for _ in range(9))))
    assert taken == ["a", "a2", "b"]
    assert len(heap) == 1


def test_what_ended_is_never_looked_at_and_does_not_pile_up() -> None:
    over: set[int] = set()
    heap: DeadlineHeap[int] = DeadlineHeap(over.__contains__)
    for number in range(100_000):
        heap.push(1e9, number)
        if number % 100:
            over.add(number)
            heap.item_ended()
        assert len(heap) <= 2 * (number // 100 + 1) + 2001
    living = []
    while (item := heap.pop_due(1e9)) is not None:
        living.append(item)
    assert living == list(range(0, 100_000, 100))


def test_exact_names_win_over_wildcards_and_the_first_claim_counts() -> None:
    table = NameTable(
        [
            ("a.example", 1),
            ("*.example", 2),
            ("A.Example.", 3),
            ("*.deep.example", 4),
            ("bücher.example", 5),
        ]
    )
    assert table.get("a.example") == 1
    assert table.get("A.EXAMPLE.") == 1
    assert table.get("b.example") == 2
    assert table.get("x.deep.example") == 4
    assert table.get("x.y.example") is None  # RFC 9525 section 6.3: one label, no more
    assert table.get("example") is None
    assert table.get(".example") is None
    assert table.get("*.example") == 2
    assert table.get("xn--bcher-kva.example") == 5


@given(st.text(max_size=300))
def test_any_text_can_be_looked_up(name: str) -> None:
    assert NameTable([("a.example", 1)]).get(name) in {None, 1}


@pytest.mark.parametrize(
    "name", ["", ".", "*", "*.", "a.*.example", "**.example", "a b", "-a.example", "a" * 64, "a..b"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(APIMisuse, match="not a server name"):
        normalize_name(name)
