"""The protocol between controllers and workers, and the only package that accesses Redis.

A controller submits a ``Job`` through ``JobProducer`` and follows its ``Event``s. A worker pulls
``Assignment``s through ``JobConsumer`` and emits events. The messages do not depend on Redis.
``redis/keys.py`` lists the keys, and ``redis/scripts/*.lua`` implement the protocol: each state change of a
job is one atomic script that may be sent twice. A random assignment ID fences each writer. The log in Redis
is the checkpoint from which workers and controllers continue, but the events that a client has received take
precedence over it.
"""
