"""What hostile peers do: to the messages that they send, and to the data that they learn from."""
