"""Drafters: what proposes the next tokens. Knows trees, and nothing of vLLM."""
