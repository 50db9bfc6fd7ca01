"""The Merkle tree against the published answers, and its proofs against every tree up to a size."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.keystore.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    tree_root,
)

# tests/vectors/SOURCES.md says where these are from.
ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
_8_1 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
_8_2 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
_8_3 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
_8_4 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
_8_5 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
_8_6 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [
    (0, 8, [_8_4, _8_1, _8_5]),
    (5, 8, [_8_2, _8_3, ROOTS[4]]),
    (2, 3, [ROOTS[2]]),
    (1, 5, [ROOTS[1], _8_1, _8_2]),
]
CONSISTENCY = [
    (1, 1, []),
    (1, 8, [_8_4, _8_1, _8_5]),
    (6, 8, [_8_6, _8_3, ROOTS[4]]),
    (2, 5, [_8_1, _8_2]),
]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
MOST = 33


def leaves(size: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(size)]


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots(size: int) -> None:
    assert tree_root(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "proof"), INCLUSION)
def test_the_published_inclusion_proofs(index: int, size: int, proof: list[str]) -> None:
    made = inclusion_proof(LEAVES[:size], index)
    assert [one.hex() for one in made] == proof
    assert is_included(LEAVES[index], index, size, made, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "size", "proof"), CONSISTENCY)
def test_the_published_consistency_proofs(old: int, size: int, proof: list[str]) -> None:
    made = consistency_proof(LEAVES[:size], old)
    assert [one.hex() for one in made] == proof
    roots = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[size])
    assert is_consistent(old, size, *roots, made)


def recursive_root(hashes: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, as it is written there."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256().digest()
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    both = recursive_root(hashes[:split]) + recursive_root(hashes[split:])
    return sha256(b"\x01" + both).digest()


@given(st.lists(st.binary(max_size=4), max_size=80))
def test_the_frontier_has_the_root_of_the_definition(entries: list[bytes]) -> None:
    hashes = [leaf_hash(entry) for entry in entries]
    frontier = Frontier()
    for hash_ in hashes:
        frontier = Frontier.parse(frontier.size, frontier.encode()).with_leaf(hash_)
    assert frontier.root == recursive_root(hashes)


def test_every_leaf_of_every_small_tree_is_shown_at_its_index_and_at_no_other() -> None:
    for size in range(1, MOST):
        tree = leaves(size)
        root = tree_root(tree)
        for index in range(size):
            proof = inclusion_proof(tree, index)
            for claimed in range(size):
                shown = is_included(tree[index], claimed, size, proof, root)
                assert shown is (claimed == index)
            assert not is_included(leaf_hash(b"other"), index, size, proof, root)
            assert not is_included(tree[index], index, size, (*proof, root), root)
            if proof:
                assert not is_included(tree[index], index, size, proof[:-1], root)


def test_every_small_tree_extends_its_beginnings_and_no_other_tree() -> None:
    for size in range(1, MOST):
        tree = leaves(size)
        root = tree_root(tree)
        for old in range(1, size + 1):
            proof = consistency_proof(tree, old)
            old_root = tree_root(tree[:old])
            assert is_consistent(old, size, old_root, root, proof)
            other = tree_root([*tree[: old - 1], leaf_hash(b"other")])
            assert not is_consistent(old, size, other, root, proof)
            assert not is_consistent(old, size, old_root, tree_root(tree[:-1]), proof)
            assert not is_consistent(old, size, old_root, root, (*proof, root))


@pytest.mark.parametrize(("size", "content"), [(1, b""), (3, bytes(32)), (0, bytes(32)), (-1, b"")])
def test_a_frontier_of_another_length_is_refused(size: int, content: bytes) -> None:
    with pytest.raises(ValueError, match="one hash for each bit"):
        Frontier.parse(size, content)
