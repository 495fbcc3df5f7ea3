guidellm run --disable-progress \
  --backend kind=openai_http,target="$ANTHROPIC_BASE_URL",model=tiny-llava \
  --tokenizer kind=huggingface_auto,model=worker/llava_worker/tiny \
  --data kind=synthetic_text,prompt_tokens=20,output_tokens=5 \
  --profile kind=synchronous --constraint kind=max_requests,count=3 --output kind=console
