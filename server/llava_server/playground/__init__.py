"""The browser playground: static files, and the routes that serve them."""
