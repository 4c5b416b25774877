"""vLLM engines with our speculation on a Ray cluster: offline batches, and a server with replicas."""
