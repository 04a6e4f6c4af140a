"""The search, the filters that prune it, and the one kernel that scores trie children."""
