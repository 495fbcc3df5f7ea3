"""Sends one prompt for each image in a folder and stores the responses (``llava-serve batch --images``)."""
