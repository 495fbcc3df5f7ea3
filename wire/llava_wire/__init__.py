"""The protocol between controllers and workers, and the only package that accesses Redis.

A controller submits a ``Job`` through ``JobProducer`` and receives its ``Event``s. A worker pulls
``Assignment``s through ``JobConsumer`` and emits events. The message types do not depend on Redis.

``redis/keys.py`` lists the keys. The scripts in ``redis/scripts`` implement the protocol: each state change
of a job is one atomic script call, which can safely be repeated. Each assignment has a random ID that serves
as a fencing token. Workers and controllers resume from the log in Redis, but the events that a client has
already received take precedence over this log.
"""
