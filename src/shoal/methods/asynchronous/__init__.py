"""Training without rounds: peers act when they like, on what they last saw."""
