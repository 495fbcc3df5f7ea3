aiperf profile --model tiny-llava --url "$ANTHROPIC_BASE_URL" --endpoint-type chat --streaming \
  --tokenizer worker/llava_worker/tiny --request-count 3 --concurrency 1 --ui none \
  --image-width-mean 64 --image-height-mean 64 --artifact-dir "$(mktemp -d)"
