"""Judge a search: data sets, runs, measures."""
