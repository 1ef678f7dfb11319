"""Token sequences as one tree, so that what they share is computed once.

Sequences that begin alike share their beginning's nodes. Laid out flat, parents before children, with
a node's depth as its position and with attention to its ancestors only, the whole tree is one causal
forward pass whose result at each node is the one that its sequence alone would give.
Shape letters: Q query nodes, B blocks, L queries of a block, P keys of a block.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROOT = -1


class PrefixTree:
    """A trie of tokens. A node stands for the prefix that ends in it; parents precede children."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._last: tuple[Sequence[int], list[int]] = (), []

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Add a sequence; returns its nodes from first token to last, new ones and shared ones."""
        known, nodes = self._last
        # From the last one's end: else the prefixes of a long sequence, in turn, take time in its square.
        path = [*nodes] if tokens[: len(known)] == known else []
        parent = path[-1] if path else ROOT
        for token in tokens[len(path) :]:
            node = self._children.get((parent, token))
            if node is None:
                node = len(self.tokens)
                self._children[parent, token] = node
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            path.append(node)
            parent = node
        self._last = tokens, path
        return path

    def ancestors(self, node: int) -> list[int]:
        """The nodes above ``node``, nearest first, itself left out."""
        above = []
        node = self.parents[node]
        while node != ROOT:
            above.append(node)
            node = self.parents[node]
        return above

    def with_ancestors(self, nodes: Iterable[int]) -> list[int]:
        """The nodes and all that are above one of them, ascending; each is visited once."""
        found: set[int] = set()
        for node in nodes:
            while node != ROOT and node not in found:
                found.add(node)
                node = self.parents[node]
        return sorted(found)

    def blocks(self, queries: Sequence[int], keys: Sequence[int]) -> "Blocks":
        """The queries cut into blocks that lie on one path each; see ``Blocks``.

        Args:
            queries: Nodes in ascending order.
            keys: Nodes among which every query and every ancestor of one is.
        """
        column = {node: index for index, node in enumerate(keys)}
        row = {node: index for index, node in enumerate(queries)}
        inner = {self.parents[node] for node in queries}
        paths = [[*reversed(self.ancestors(node)), node] for node in queries if node not in inner]
        # Long branches are cut, so that blocks are of a size; not into more than a few parts, since each
        # part's keys are a copy. One sequence alone is no tree.
        longest = max(map(len, paths), default=0)
        most = longest if longest == len(queries) else max(MIN_BLOCK, longest // 4)
        taken: set[int] = set()
        cut: list[tuple[list[int], list[int]]] = []  # a block's nodes, and its path down to the last of them
        for path in paths:
            branch = [node for node in path if node in row and node not in taken]
            for first in range(0, len(branch), most):
                nodes = branch[first : first + most]
                cut.append((nodes, path[: self.depths[nodes[-1]] + 1]))
            taken.update(branch)
        shape = (len(cut), max((len(nodes) for nodes, _ in cut), default=0))
        widest = max((len(path) for _, path in cut), default=0)
        if len(cut) * widest > MAX_COPIES * len(keys) or (
            len(cut) > 1 and (shape[0] * shape[1] * widest > len(queries) * len(keys))
        ):
            return self._one_block(row, column)
        queries_BL = np.zeros(shape, dtype=np.int64)
        keys_BP = np.zeros((len(cut), widest), dtype=np.int64)
        mask_BLP = np.zeros((*shape, widest), dtype=np.bool_)
        mask_BLP[:, :, 0] = True  # a place that no query takes must still attend to something
        query_depths_BL = np.zeros(shape, dtype=np.int64)
        places_Q = np.zeros(len(queries), dtype=np.int64)
        for block, (nodes, path) in enumerate(cut):
            depths_L = np.array([self.depths[node] for node in nodes])
            queries_BL[block, : len(nodes)] = [row[node] for node in nodes]
            keys_BP[block, : len(path)] = [column[node] for node in path]
            query_depths_BL[block, : len(nodes)] = depths_L
            mask_BLP[block, : len(nodes)] = np.arange(widest) <= depths_L[:, None]
            places_Q[queries_BL[block, : len(nodes)]] = block * shape[1] + np.arange(len(nodes))
        return Blocks(
            queries_BL=queries_BL,
            keys_BP=keys_BP,
            mask_BLP=mask_BLP,
            query_depths_BL=query_depths_BL,
            key_depths_BP=np.tile(np.arange(widest), (len(cut), 1)),
            places_Q=places_Q,
        )

    def _one_block(self, row: dict[int, int], column: dict[int, int]) -> "Blocks":
        """All queries together, which is less work where many short branches hang on a long trunk."""
        mask_BLP = np.zeros((1, len(row), len(column)), dtype=np.bool_)
        for node, index in row.items():  # parents first
            parent = row.get(self.parents[node])
            if parent is not None:
                mask_BLP[0, index] = mask_BLP[0, parent]
            else:
                mask_BLP[0, index, [column[above] for above in self.ancestors(node)]] = True
            mask_BLP[0, index, column[node]] = True
        return Blocks(
            queries_BL=np.arange(len(row))[None],
            keys_BP=np.arange(len(column))[None],
            mask_BLP=mask_BLP,
            query_depths_BL=np.array([[self.depths[node] for node in row]]),
            key_depths_BP=np.array([[self.depths[node] for node in column]]),
            places_Q=np.arange(len(row)),
        )


MAX_COPIES = 6
"""How often the blocks of a pass may copy a key on average."""
MIN_BLOCK = 32
"""Queries up to which a block is not cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Queries in blocks, the nodes of each on one path, which holds all that they attend to."""

    queries_BL: npt.NDArray[np.int64]
    """Rows of the queries; places that are not taken hold 0."""
    keys_BP: npt.NDArray[np.int64]
    """Columns of the path's keys, from the root down; places that are not taken hold 0."""
    mask_BLP: npt.NDArray[np.bool_]
    """Whether the query attends to the key: it is the key or stands below it."""
    query_depths_BL: npt.NDArray[np.int64]
    """Positions of the queries in their sequences; 0 in places that are not taken."""
    key_depths_BP: npt.NDArray[np.int64]
    """Positions of the keys; what stands in places that are not taken does not matter."""
    places_Q: npt.NDArray[np.int64]
    """Where each query is in the flattened blocks."""


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin alike with."""
    shortest = min(len(left), len(right))
    return next((i for i in range(shortest) if left[i] != right[i]), shortest)


def pack(sequences: Sequence[tuple[int, ...]], max_nodes: int) -> list[list[int]]:
    """Group sequences so that the tree of each group has at most ``max_nodes`` nodes.

    Sorted, sequences that share the most are neighbours, so few nodes are paid for twice. A sequence and its
    own beginnings stay together, since they take no more nodes than it takes alone; one that is longer than
    ``max_nodes`` makes a group with them.

    Returns:
        Indices into ``sequences``, each exactly once.
    """
    groups: list[list[int]] = []
    nodes = 0
    previous: tuple[int, ...] = ()
    for chain in chains(sequences):
        longest = sequences[chain[-1]]
        new = len(longest) - shared_length(previous, longest)
        if not groups or nodes + new > max_nodes:
            groups.append([])
            nodes, new = 0, len(longest)
        groups[-1] += chain
        nodes += new
        previous = longest
    return groups


def chains(sequences: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices into ``sequences``, each once; in a chain each sequence is the beginning of the next."""
    found: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        if found and is_beginning(sequences[found[-1][-1]], sequences[index]):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def is_beginning(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether ``right`` begins with all of ``left``."""
    return right[: len(left)] == left
