from typing import Literal

import instructor
from instructor.processing.multimodal import Image
from openai import OpenAI
from pydantic import BaseModel


class Heart(BaseModel):
    sentence: Literal["The heart is red.", "The heart is green.", "There is no heart."]


QUESTION = "What colour is the heart?"
client = instructor.from_openai(OpenAI(), mode=instructor.Mode.JSON_SCHEMA)
heart = client.chat.completions.create(
    model="tiny-llava",
    response_model=Heart,
    messages=[{"role": "user", "content": [QUESTION, Image.from_path("examples/shapes.png")]}],
    temperature=0,
)
print(heart.sentence)
