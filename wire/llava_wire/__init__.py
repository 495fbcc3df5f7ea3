"""The contract between controllers and workers, and the only code that speaks Redis.

A controller submits a ``Job`` through ``JobProducer`` and follows ``Event``s; a worker pulls ``Assignment``s
through ``JobConsumer`` and emits them. The messages need no Redis; ``redis/keys.py`` lists the keys, and
``redis/scripts/*.lua`` hold the protocol: each move of a job is one atomic script that may be sent twice. A
random assignment id fences each writer; the log in Redis is the checkpoint that workers and controllers
continue from; what a client has seen wins over it.
"""
