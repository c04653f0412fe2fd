"""Finding pages: embedders, indexes, lexical search, relevance of a page to a question, retrieval measures."""
