"""What differs between the families of models that can be trained: one file a family, and the table of them."""
