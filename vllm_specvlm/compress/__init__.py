"""What a drafter sees of a picture: a few tokens made of the target's many. Knows torch, and nothing of vLLM."""
