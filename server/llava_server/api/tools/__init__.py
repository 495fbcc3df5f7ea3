"""Tool calls: the prompt that describes tools, and the parser for a model's calls."""
