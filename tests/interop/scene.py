"""The image that all clients send, a question about it, and the bundled model's response.

Imported in the clients' environments. Uses only the standard library.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal

MODEL = "tiny-llava"
IMAGE = Path(__file__).parents[2] / "examples" / "shapes.png"
BASE64 = base64.b64encode(IMAGE.read_bytes()).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
QUESTION = "What colour is the heart?"
COLOR = "red"
# Typed output. Without an image, the model selects the last sentence.
Sentence = Literal["The heart is red.", "The heart is green.", "There is no picture."]
SENTENCE = "The heart is red."
NO_IMAGE = "There is no picture."

# The number of tokens that the image adds to a prompt is larger than this.
IMAGE_TOKENS = 50

# The bundled model was not trained on JSON, and continues a string until it reaches the length limit. This
# bias makes it close strings, arrays and objects. The keys are the IDs of the tokens ", ] and }.
END_JSON = {"260": 12, "319": 12, "351": 12}
