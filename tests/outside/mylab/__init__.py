"""A laboratory's own package, outside the project."""
