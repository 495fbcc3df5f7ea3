"""``llava-serve up``, which runs Redis, a server and workers on one machine."""
