"""Objectives, one method a file; each exports `Config` and `build`."""
