"""Token sequences as one tree, so that what they share is computed once.

Sequences that begin alike share their beginning's nodes. Laid out flat, parents before children, with
a node's depth as its position and with attention to its ancestors only, the whole tree is one causal
forward pass whose result at each node is the one that its sequence alone would give.
Shape letters: Q query nodes, K key nodes.
"""

from collections.abc import Sequence

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

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Add a sequence; returns its nodes from first token to last, new ones and shared ones."""
        path = []
        parent = ROOT
        for token in tokens:
            node = self._children.get((parent, token))
            if node is None:
                node = len(self.tokens)
                self._children[parent, token] = node
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(0 if parent == ROOT else self.depths[parent] + 1)
            path.append(node)
            parent = node
        return path

    def ancestors(self, node: int) -> list[int]:
        """The nodes above ``node``, nearest first, itself left out."""
        above = []
        node = self.parents[node]
        while node != ROOT:
            above.append(node)
            node = self.parents[node]
        return above

    def attention_mask(self, queries: Sequence[int], keys: Sequence[int]) -> npt.NDArray[np.bool_]:
        """[Q, K]: whether a query attends to a key, that is, is it or descends from it.

        Args:
            queries: Nodes in ascending order.
            keys: Nodes among which every query and every ancestor of one is.
        """
        column = {node: index for index, node in enumerate(keys)}
        row = {node: index for index, node in enumerate(queries)}
        mask_QK = np.zeros((len(queries), len(keys)), dtype=np.bool_)
        for index, node in enumerate(queries):
            parent = self.parents[node]
            if parent in row:
                mask_QK[index] = mask_QK[row[parent]]
            else:
                mask_QK[index, [column[above] for above in self.ancestors(node)]] = True
            mask_QK[index, column[node]] = True
        return mask_QK


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
    chains: list[list[int]] = []  # each the beginning of the next
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        if chains and is_beginning(sequences[chains[-1][-1]], sequences[index]):
            chains[-1].append(index)
        else:
            chains.append([index])
    groups: list[list[int]] = []
    nodes = 0
    previous: tuple[int, ...] = ()
    for chain in chains:
        longest = sequences[chain[-1]]
        new = len(longest) - shared_length(previous, longest)
        if not groups or nodes + new > max_nodes:
            groups.append([])
            nodes, new = 0, len(longest)
        groups[-1] += chain
        nodes += new
        previous = longest
    return groups


def is_beginning(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether ``right`` begins with all of ``left``."""
    return len(left) <= len(right) and shared_length(left, right) == len(left)
