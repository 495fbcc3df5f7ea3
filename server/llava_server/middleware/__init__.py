"""Middleware, outermost first: request ID, errors, tracing, authentication, body limits."""
