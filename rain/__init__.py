"""The paper's data half: the clean image of a rain video, and synthetic rain. Actions import it; it
knows nothing of the network."""
