"""The command line: from what a user types to a config that Hydra reads, and from errors to sentences."""
