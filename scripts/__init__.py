"""The commands, one file each; they import as `d2v.scripts.<name>` too, and `d2v <name>` runs them."""
