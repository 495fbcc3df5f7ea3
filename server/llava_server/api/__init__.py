"""The HTTP API: one package per API, and shared code (request fields, tools, request handler, OpenAPI)."""
