"""What is reported: metrics, pictures of results, and the page. Engine and actions import it; it
knows nothing of the network."""
