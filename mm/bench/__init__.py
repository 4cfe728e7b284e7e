"""What the bench scripts time, and the soak test."""
