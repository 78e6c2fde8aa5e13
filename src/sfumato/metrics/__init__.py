"""How good a set of pictures is: distances between features, with the error of each number beside it."""
