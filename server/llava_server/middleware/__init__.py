"""Middleware, outermost first: request ID, tracing, errors, authentication, rate limits, body limits."""
