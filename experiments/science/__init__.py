"""The science experiment: what small models learn about regions, by how the region is indicated."""
