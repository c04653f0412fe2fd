"""Small data sets of coloured shapes, drawn on the spot, for grounding, haystacks and multiple choice."""
