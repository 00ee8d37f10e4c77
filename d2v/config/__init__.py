"""Settings: what they are, how they are read and checked."""
