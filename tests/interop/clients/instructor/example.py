from typing import Literal

import instructor
from instructor.processing.multimodal import Image
from openai import OpenAI
from pydantic import BaseModel


class Circle(BaseModel, extra="forbid"):
    color: Literal["Red", "Green", "Blue"]


QUESTION = "What colour is the circle?\nAnswer the question using a single word or phrase."
client = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
circle = client.chat.completions.create(
    model="tiny-llava",
    response_model=Circle,
    messages=[{"role": "user", "content": [QUESTION, Image.from_path("examples/shapes.png")]}],
    temperature=0,
)
print(circle.color)
