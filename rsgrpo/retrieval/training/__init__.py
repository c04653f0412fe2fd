"""Train a page retriever: pairs, batches, hard negatives, loss, trainer."""
