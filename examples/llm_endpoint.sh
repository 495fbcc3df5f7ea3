#!/bin/sh
# The same from the shell, with the llm tool: sh examples/llm_endpoint.sh PICTURE QUESTION
# The server and the key are OpenAI's own variables: OPENAI_BASE_URL=http://127.0.0.1:8000/v1, OPENAI_API_KEY.
set -eu
model=$(llm openai endpoint "$OPENAI_BASE_URL" --key "$OPENAI_API_KEY" --models | head -n 1)
llm openai endpoint "$OPENAI_BASE_URL" --key "$OPENAI_API_KEY" -m "$model" -o temperature 0 -a "$1" "$2"
