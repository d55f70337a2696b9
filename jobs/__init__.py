"""Entry points, one per command, and the command line."""
