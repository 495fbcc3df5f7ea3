"""Other servers that can serve the same model. Each module documents the requirements of one server."""
