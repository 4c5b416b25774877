"""What happened to one request, step by step: the recorded value, its page and its summary. Knows nothing of vLLM."""
