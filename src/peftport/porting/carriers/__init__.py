"""How the parameters of each method are rewritten in other coordinates, one file per method."""
