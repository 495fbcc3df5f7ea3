"""The protocol between controllers and workers, and the only package that accesses Redis.

A controller submits a ``Job`` through ``JobProducer`` and receives its ``Event``s. A worker pulls
``Assignment``s through ``JobConsumer`` and emits events. The messages do not depend on Redis.
``redis/keys.py`` lists the keys, and ``redis/scripts/*.lua`` implement the protocol: every state change of a
job is one atomic script that can safely be sent twice. A random assignment ID serves as the fencing token of
a writer. The log in Redis is the checkpoint from which workers and controllers resume, but the events that a
client has received take precedence over it.
"""
