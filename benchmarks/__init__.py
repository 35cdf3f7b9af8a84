"""Speed and memory against plain ports of the same work. Nothing but the tests imports it."""
