"""What `specvlm selftest` checks on a user's machine: instructions, kernels, answers and speed."""
