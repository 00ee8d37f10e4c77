"""Reports of an evaluation, one a file; each exports `report(subject)` and is asked for by its name, evaluate.reports=[name]."""
