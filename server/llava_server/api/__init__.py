"""The HTTP API: one package for each API, plus shared code."""
