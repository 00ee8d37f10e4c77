"""Reports of an evaluation, one a file, which exports `report(subject)`; evaluate.reports=[name] asks for it."""
