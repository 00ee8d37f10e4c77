"""What modalities share: where samples come from, labels, sampling, masks over tokens."""
