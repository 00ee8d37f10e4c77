"""The encoder, what it is made of, and the task models around it."""
