"""What a server was asked and what it answered, recorded for training when its operator wants that."""
