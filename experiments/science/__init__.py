"""The science experiment: small models compared by the prompt that shows them the region."""
