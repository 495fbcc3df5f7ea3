"""Tool calls: the prompt that describes tools and the parser of a model's calls."""
