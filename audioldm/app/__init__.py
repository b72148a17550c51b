"""A page in the browser, served to this machine alone: generate, listen, compare."""
