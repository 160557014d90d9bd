"""Your connections: a folder each, with a ``defs.yaml``. The folder's name is the connection's.

A folder of Python files instead holds assets of your own.
"""
