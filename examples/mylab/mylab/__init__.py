"""A research group's own parts: each a class or a function, and a YAML in conf/ that names it."""
