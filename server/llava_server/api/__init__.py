"""The HTTP API: one package per API, and the code they share (request fields, tools, handler, OpenAPI)."""
