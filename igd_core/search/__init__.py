"""From a history to ranked items: query, filters, beam search, and the kernel that scores trie children."""
