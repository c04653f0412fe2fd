"""Finding pages: embedders, indexes, search of text, training of retrievers, the filter of pages, measures."""
