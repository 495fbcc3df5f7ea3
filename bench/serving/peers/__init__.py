"""Other servers for the same model. Each module documents the requirements of one server."""
