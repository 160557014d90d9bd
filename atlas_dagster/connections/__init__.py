"""Your connections: a folder each, with a ``defs.yaml``. The folder's name is the connection's."""
