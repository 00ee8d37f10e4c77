"""Task models trained on labels, on the same loop."""
