"""Privacy mechanisms on the wire, and the accountant of what they release."""
