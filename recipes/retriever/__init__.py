"""Training of a page retriever (``stage=retriever``): data, ranks, measurements before and after."""
