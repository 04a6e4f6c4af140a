"""Several processes that serve one port (``IGD_REPLICAS``), each with its own model, and the one that watches them.

The supervisor never loads a model: it opens the port, starts the replicas and starts again those that end. They take
connections from the one socket that it opened, so none is lost with a replica that had not taken it. It serves the
operations port for all of them, asking each on a Unix socket of its own.

- `supervisor.py` starts, restarts, drains; `replica.py` is one replica as the supervisor sees it
- ``__main__.py`` is the replica's process; `shares.py` what of the settings and of the machine is its own
- `operations.py` probes, metrics and administration for all; `merging.py` many metrics pages as one
"""
