"""What the people who run jobs ask: how far is it, and is this machine fit for it."""
