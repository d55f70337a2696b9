"""The curation method of the paper: prompts, answer rules, walk, uniqueness, listener and verification."""
