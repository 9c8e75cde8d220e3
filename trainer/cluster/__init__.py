"""Several nodes: hostfiles, ranks from any launcher, and whether the nodes agree."""
