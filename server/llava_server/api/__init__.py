"""The HTTP API: a package for each API, and what they share: request fields, tools, the handler, OpenAPI."""
