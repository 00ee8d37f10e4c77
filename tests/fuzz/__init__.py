"""Hostile settings and damaged files, seeded, through the scripts as a user types them: see __main__.py."""

import os

# before transformers and datasets are imported: they read these once
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", ACCELERATE_USE_CPU="true", MPLBACKEND="Agg")
