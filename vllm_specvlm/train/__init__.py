"""Training a feature head on its target's own features and laws, on the fly. Needs transformers, not vLLM."""
