"""The one loop, and what a run sets up, measures, shows and saves."""
