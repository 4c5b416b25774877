"""Making feature heads: training on the target's own features and laws, and conversion. Needs transformers, not vLLM."""
