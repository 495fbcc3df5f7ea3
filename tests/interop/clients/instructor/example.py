from typing import Literal

import instructor
from instructor.processing.multimodal import Image
from openai import OpenAI
from pydantic import BaseModel, ConfigDict


class Circle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    color: Literal["red", "green", "blue"]


client = instructor.from_openai(OpenAI(), mode=instructor.Mode.TOOLS)
circle = client.chat.completions.create(
    model="tiny-llava",
    response_model=Circle,
    messages=[
        {"role": "user", "content": ["What colour is the circle?", Image.from_path("examples/shapes.png")]}
    ],
    temperature=0,
)
print(circle.color)
