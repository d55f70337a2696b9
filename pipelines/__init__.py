"""Everything that runs on Ray: one module per command, and what they share."""
