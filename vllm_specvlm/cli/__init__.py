"""The `specvlm` command line. Each command is a module with `main(argv) -> exit status`, imported when it is called."""
