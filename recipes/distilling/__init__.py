"""Evidence teaches retrieval: training pairs of a retriever from what a trained policy says of its pages."""
