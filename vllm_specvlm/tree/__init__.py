"""What a token tree is: its topology, its code in a flat list, its growth and its acceptance. Knows nothing of vLLM."""
