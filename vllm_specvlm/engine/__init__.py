"""Everything that knows vLLM's internals, and nothing else: the only room of the house that imports vLLM."""
