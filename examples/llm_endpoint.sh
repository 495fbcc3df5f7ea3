#!/bin/sh
# Ask about an image with the llm tool: sh examples/llm_endpoint.sh IMAGE QUESTION
# Set OPENAI_BASE_URL (such as http://127.0.0.1:8000/v1) and OPENAI_API_KEY.
set -eu
model=$(llm openai endpoint "$OPENAI_BASE_URL" --key "$OPENAI_API_KEY" --models | head -n 1)
llm openai endpoint "$OPENAI_BASE_URL" --key "$OPENAI_API_KEY" -m "$model" -o temperature 0 -a "$1" "$2"
