"""The Merkle tree of an append-only log: hashes, roots and proofs as RFC 9162 defines them.

A tree of *n* entries has one root. Who knows a root of *m* entries can be shown that one entry is
among them (*inclusion*), or that the first *m* of *n* entries are still what they were
(*consistency*), with about log2(*n*) hashes and without the entries.

Leaves and inner nodes are hashed with different first bytes, so that no entry can pass for a node.

Appending needs no more than the tree's *frontier*: the roots of its whole subtrees, one for each
bit of its size. That is all that `Frontier` keeps, so a log of any length is appended to and
checked in constant memory.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "HASH_BYTES",
    "MAX_PROOF_HASHES",
    "Frontier",
    "consistency_proof",
    "inclusion_proof",
    "is_consistent",
    "is_included",
    "leaf_hash",
    "tree_root",
]

HASH_BYTES = 32
MAX_PROOF_HASHES = 64  # sizes are below 2**63

_LEAF, _NODE = b"\x00", b"\x01"


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of one entry (RFC 9162, 2.1.1)."""
    return sha256(_LEAF + entry).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over leaf hashes (RFC 9162, 2.1.1); of none, the hash of nothing."""
    frontier = Frontier()
    for leaf in leaves:
        frontier = frontier.with_leaf(leaf)
    return frontier.root


@dataclass(frozen=True, slots=True)
class Frontier:
    """What is needed to append to a tree of `size` leaves: the roots of its whole subtrees.

    The largest comes first. `ValueError` if there is not one hash for each bit of the size.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if len(self.hashes) != self.size.bit_count():
            raise ValueError("a frontier has one hash for each bit of its tree's size")

    @classmethod
    def parse(cls, size: int, content: bytes) -> Frontier:
        """Read what `encode` wrote; raise `ValueError` for another length."""
        if size < 0 or len(content) != size.bit_count() * HASH_BYTES:
            raise ValueError("a frontier has one hash for each bit of its tree's size")
        starts = range(0, len(content), HASH_BYTES)
        return cls(size, tuple(content[start : start + HASH_BYTES] for start in starts))

    def encode(self) -> bytes:
        """Return the hashes, joined."""
        return b"".join(self.hashes)

    def with_leaf(self, leaf: bytes) -> Frontier:
        """Return the frontier after one more leaf hash: equal subtrees join, as in counting."""
        hashes, carry, size = list(self.hashes), leaf, self.size
        while size & 1:
            carry = _node_hash(hashes.pop(), carry)
            size >>= 1
        return Frontier(self.size + 1, (*hashes, carry))

    @property
    def root(self) -> bytes:
        """The root of the tree."""
        if not self.hashes:
            return sha256().digest()
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = _node_hash(left, root)
        return root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the hashes that lead from a leaf to the root over all (RFC 9162, 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise ValueError("there is no leaf of that index")
    proof: list[bytes] = []
    while len(leaves) > 1:
        left = _left_size(len(leaves))
        if index < left:
            proof.append(tree_root(leaves[left:]))
            leaves = leaves[:left]
        else:
            proof.append(tree_root(leaves[:left]))
            leaves, index = leaves[left:], index - left
    return tuple(reversed(proof))


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return whether a leaf hash is the `index`-th of the tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_PROOF_HASHES:
        return False
    node, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = _node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = _node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and hmac.compare_digest(found, root)


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Return the hashes that lead from the first `old_size` leaves' root to the root over all.

    RFC 9162, 2.1.4.1. `ValueError` unless 1 <= `old_size` <= the number of leaves.
    """
    if not 1 <= old_size <= len(leaves):
        raise ValueError("an older tree has at least one leaf and no more than the newer one")
    proof: list[bytes] = []
    from_the_start = True  # whether the old tree's root is the root of what is left of it
    while old_size < len(leaves):
        left = _left_size(len(leaves))
        if old_size <= left:
            proof.append(tree_root(leaves[left:]))
            leaves = leaves[:left]
        else:
            proof.append(tree_root(leaves[:left]))
            leaves, old_size, from_the_start = leaves[left:], old_size - left, False
    if not from_the_start:
        proof.append(tree_root(leaves))
    return tuple(reversed(proof))


def is_consistent(
    old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return whether the newer tree begins with the older one (RFC 9162, 2.1.4.2)."""
    if not 1 <= old_size <= size or len(proof) > MAX_PROOF_HASHES:
        return False
    if old_size == size:
        return not proof and hmac.compare_digest(old_root, root)
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old_found = found = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_found, found = _node_hash(sibling, old_found), _node_hash(sibling, found)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            found = _node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    both = hmac.compare_digest(old_found, old_root) and hmac.compare_digest(found, root)
    return last == 0 and both


def _node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(_NODE + left + right).digest()


def _left_size(size: int) -> int:
    """Return the largest power of two below `size`, which is 2 or more."""
    return 1 << (size - 1).bit_length() - 1
