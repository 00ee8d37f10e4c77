"""Hostile settings and damaged files, seeded, through the scripts as a user types them: see __main__.py."""
