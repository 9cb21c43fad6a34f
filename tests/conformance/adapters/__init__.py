"""How the recorded values of a method are computed with our losses, one file a family."""
