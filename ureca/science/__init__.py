"""The experiment: what small models learn about regions, depending on how they are told which region is meant."""
