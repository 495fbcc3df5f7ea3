"""The phrasings for each kind of question. `questions` generates the answers."""

__all__ = [
    "COLOUR",
    "COUNT",
    "DESCRIBE",
    "EXISTS",
    "READ",
    "READ_NUMBER",
    "READ_WORD",
    "SHAPE",
    "WHERE",
]

COLOUR = (
    "What colour is the {thing}?",
    "What color is the {thing}?",
    "Which colour is the {thing}?",
    "What is the colour of the {thing}?",
    "What is the color of the {thing}?",
    "Tell me the colour of the {thing}.",
    "What colour is the {thing} in the picture?",
    "What color is the {thing} in the image?",
)

SHAPE = (
    "Which shape is {thing}?",
    "What shape is {thing}?",
    "What is the {thing} shape?",
    "What is the {thing} object?",
    "What shape is the {thing} object?",
    "What shape is the {thing} thing?",
    "Which object is {thing}?",
    "What is {thing} in this picture?",
    "What is the shape of the {thing} object?",
)

COUNT = (
    "How many {things} are there?",
    "How many {things} are in the picture?",
    "How many {things} are in the image?",
    "How many {things} can you see?",
    "How many {things} do you see?",
    "Count the {things}.",
    "What is the number of {things}?",
    "How many {things}?",
    "How many {things} does the picture show?",
)

WHERE = (
    "Where is the {thing}?",
    "Where in the picture is the {thing}?",
    "Where is the {thing} in the image?",
    "Where do you see the {thing}?",
    "In which part of the picture is the {thing}?",
    "Where can I find the {thing}?",
)

EXISTS = (
    "Is there {thing}?",
    "Is there {thing} in the picture?",
    "Is there {thing} in the image?",
    "Can you see {thing}?",
    "Do you see {thing}?",
    "Does the picture show {thing}?",
    "Is {thing} in the picture?",
)

READ = (
    "What does the text say?",
    "Read the text.",
    "What is written in the picture?",
    "What text is in the image?",
    "What is written here?",
    "What does it say?",
    "Can you read the text?",
)

READ_WORD = (
    "What is the word?",
    "Which word is written in the picture?",
    "Read the word.",
    "What word do you see?",
)

READ_NUMBER = (
    "What is the number?",
    "Which number is in the picture?",
    "Read the number.",
    "What number do you see?",
    "What number is shown in the image?",
)

DESCRIBE = (
    "Describe the picture.",
    "Describe this picture.",
    "Describe the image.",
    "Describe this image.",
    "Describe the picture in one sentence.",
    "What is in this picture?",
    "What is in the picture?",
    "What is in this image?",
    "What is in the image?",
    "What's in this picture?",
    "What's in this image?",
    "What is this?",
    "What do you see?",
    "What can you see?",
    "What can you see in this picture?",
    "What does the picture show?",
    "What is shown in this image?",
    "Please describe the picture.",
    "Can you describe this image?",
    "Tell me about this picture.",
    "Provide a one-sentence caption for the provided image.",
)
