"""Multimodal tree speculative decoding for vLLM.

A drafter that sees the image proposes a tree of next tokens; the target checks the whole tree in one forward pass and
keeps the longest path it agrees with, so that answers stay what they were. vLLM finds the plugin by its entry point;
importing this package loads nothing heavy.
"""

__version__ = "0.1.0"
