"""Field names and literal values of other servers' APIs, and their status in this server."""
