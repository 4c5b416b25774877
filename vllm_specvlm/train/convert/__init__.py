"""Public draft heads into this project's checkpoints. `conversion.convert` is the way in; one file per layout."""
