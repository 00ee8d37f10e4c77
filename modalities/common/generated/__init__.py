"""Data that d2v makes and writes to disk as a user's own would be: scenes that are drawn, told and said; and digits."""
