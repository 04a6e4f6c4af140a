"""Integer ids that must not be mixed up, each an index into another array; and how long an item's own id may be."""

from __future__ import annotations

from typing import NewType

ItemIndex = NewType("ItemIndex", int)
"""Row of an item in the catalogue."""

MAX_ITEM_ID_CHARS = 256
"""Of the id that a catalogue's items file gives an item."""

LeafIndex = NewType("LeafIndex", int)
"""Position of a distinct token path in lexicographic order; items that share a title share a leaf."""

NodeId = NewType("NodeId", int)
"""Trie node, numbered breadth first; 0 is the root."""

EdgeId = NewType("EdgeId", int)
"""Trie edge; edge e leads to node e + 1."""

ROOT = NodeId(0)
