"""What frozen features are worth, and features of any number of files."""
