"""Making feature heads: training on the target's features and laws, and conversion. Needs transformers, not vLLM."""
