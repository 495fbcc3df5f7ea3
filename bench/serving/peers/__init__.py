"""Other servers that support the same model. Each module documents the requirements of one server."""
