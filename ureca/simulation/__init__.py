"""A curation in simulated time: what it would take on other resources, from what one run was measured to take."""
