"""What the supervisor and its workers say to each other, and when a dead worker is replaced."""
