"""What turns messages into bytes and back: codecs, privacy mechanisms, checks, and their chain."""
