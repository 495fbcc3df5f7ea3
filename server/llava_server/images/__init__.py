"""From a data: URL to uint8 tiles.

``decode`` reads the URL, or ``fetch`` gets what it points to, from where ``address`` says it may; ``pool``
hands the bytes to a throw-away child process, ``child`` (in there) opens them with Pillow, ``fit`` shapes
them for the model, ``intake`` does all of it for a whole request and remembers results. Nothing is imported
here: a child must stay small.
"""
