"""The same evaluation on Ray: from two processes to a cluster, with workers that may be lost."""
