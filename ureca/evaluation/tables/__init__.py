"""The table of an evaluation: built from measures, written as Markdown, JSON and HTML."""
