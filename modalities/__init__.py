"""Modalities, one package each; a new modality is a new folder and nothing else is edited."""
