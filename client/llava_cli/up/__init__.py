"""``llava-serve up``: Redis, a controller and workers on one machine."""
